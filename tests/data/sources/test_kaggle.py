"""Kaggle's layout, built from simulated archives: both must give the same images."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.devkit import ARCHIVE as DEVKIT
from tencrop.data.sources.ilsvrc import IlsvrcSource
from tencrop.data.sources.kaggle import ARCHIVE, SOLUTION, find_solution, read_solution
from tencrop.data.sources.simulate import simulate
from tencrop.data.store.manifest import open_split, read_manifest

IMAGES = "ILSVRC/Data/CLS-LOC"


@pytest.fixture(scope="module")
def archives(photo_folder, data_config, tmp_path_factory) -> Path:
    """The photographs as ILSVRC2012's archives; not to be written to."""
    return simulate(data_config(photo_folder, tmp_path_factory.mktemp("ilsvrc")), progress=False)


@pytest.fixture(scope="module")
def kaggle(archives, data_config, tmp_path_factory) -> Path:
    """The same images in Kaggle's layout; not to be written to."""
    root = tmp_path_factory.mktemp("kaggle")
    source = IlsvrcSource(data_config(archives, root, name="imagenet"))
    lines = ["ImageId,PredictionString"]
    for split, files in source.files.items():
        for file in files:
            wnid, _, name = file.name.partition("/")
            path = root / IMAGES / split / (file.name if split == "train" else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read(split, file))
            if split == "val":
                lines.append(f"{name.removesuffix('.JPEG')},{wnid} 10 20 30 40 {wnid} 1 2 3 4 ")
    (root / SOLUTION).write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    (root / IMAGES / "test").mkdir()
    shutil.copy(root / IMAGES / "train/china/00.JPEG", root / IMAGES / "test/ILSVRC2012_test_00000001.JPEG")
    return root


@pytest.fixture
def data_of(data_config, tmp_path):
    """data_of(source, ...) -> Data of imagenet; fewer images than ILSVRC2012 has are accepted."""

    def build(source, root="root", **options):
        data = data_config(source, tmp_path / root, name="imagenet", **options)
        data.subset = True
        return data

    return build


def zipped(folder: Path, path: Path) -> Path:
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr(f"{IMAGES}/train/china/._00.JPEG", b"x")
        archive.writestr("ILSVRC/Annotations/CLS-LOC/train/china/00.xml", b"<annotation/>")
    return path


def test_the_store_equals_that_of_the_archives(archives, kaggle, data_of, tmp_path):
    expected = prepare(data_of(archives, "archives"), workers=1, progress=False)
    archive = zipped(kaggle, tmp_path / "zip" / ARCHIVE)
    for name, source in (("folder", kaggle), ("zip", archive.parent)):
        root = prepare(data_of(source, name), workers=1, progress=False)
        for file in ("train.beton", "val.beton", "mean_image.npy"):
            assert (root / file).read_bytes() == (expected / file).read_bytes()
        for split in ("train", "val"):
            found, wanted = open_split(root, split), open_split(expected, split)
            assert found.store_fingerprint == wanted.store_fingerprint
            assert found.read_original(1) == wanted.read_original(1)
    manifest = read_manifest(tmp_path / "zip")
    assert manifest["source"]["routes"] == {"train": "zip", "val": "zip"}
    assert manifest["source"]["archives"] == {ARCHIVE: archive.stat().st_size}
    assert manifest["left_out"] == {"train": {"hidden": 1}, "val": {}}
    assert read_manifest(tmp_path / "folder")["source"]["splits"]["val"] == f"{IMAGES}/val"


@pytest.mark.parametrize("inner", ["ILSVRC", IMAGES])
def test_data_source_may_be_an_inner_folder(kaggle, data_of, inner):
    """The list of classes is above it; the prepared folder is recognized by either path."""
    source = IlsvrcSource(data_of(kaggle / inner))
    assert [len(source.files[split]) for split in ("train", "val")] == [24, 12]
    root = prepare(data_of(kaggle), workers=1, progress=False)
    below = str(Path(IMAGES).relative_to(inner))
    assert prepare(data_of(kaggle / inner, splits=(f"{below}/train", f"{below}/val")), progress=False) == root


def test_without_the_list_of_classes(kaggle, data_of, tmp_path):
    source = Path(shutil.copytree(kaggle, tmp_path / "copy"))
    (source / SOLUTION).unlink()
    with pytest.raises(
        UserError, match=rf"ILSVRC2012_devkit_t12\.tar\.gz, which is missing; .* or Kaggle's {SOLUTION}"
    ):
        IlsvrcSource(data_of(source))
    archive = zipped(source, tmp_path / "zip" / ARCHIVE)
    with pytest.raises(UserError, match=rf"or Kaggle's {SOLUTION}"):
        IlsvrcSource(data_of(archive.parent))
    shutil.copy(kaggle / SOLUTION, archive.parent)
    assert len(IlsvrcSource(data_of(archive.parent)).files["val"]) == 12
    assert find_solution(tmp_path) is None


def test_the_list_and_the_devkit_must_agree(archives, kaggle, data_of, tmp_path):
    source = Path(shutil.copytree(kaggle, tmp_path / "copy"))
    shutil.copy(archives / DEVKIT, source)
    assert len(IlsvrcSource(data_of(source)).files["val"]) == 12
    lines = (source / SOLUTION).read_text().splitlines()
    name, _, objects = lines[1].partition(",")
    other = "flower" if objects.startswith("china") else "china"
    (source / SOLUTION).write_text("\n".join([lines[0], f"{name},{other} 1 2 3 4", *lines[2:]]))
    message = rf"{SOLUTION}: says that {name} is of {other}, but the devkit says {objects.split()[0]}; remove the one"
    with pytest.raises(UserError, match=message):
        IlsvrcSource(data_of(source))


def test_the_list_of_classes_as_people_save_it():
    lines = [
        "\ufeffImageId,PredictionString",
        'ILSVRC2012_val_00000002,"n1 1 2 3 4"',
        "",
        "ILSVRC2012_val_00000001,n2 1 2 ",
    ]
    assert read_solution("\r\n".join(lines).encode(), "list").wnids == {2: "n1", 1: "n2"}


@pytest.mark.parametrize(
    "line",
    ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000001,", "n01440764_1,n1 1 2 3 4", "ILSVRC2012_val_00000007,n2"],
)
def test_invalid_lists_of_classes_are_refused(line):
    with pytest.raises(UserError, match="list, line 2: not a validation image and its one class"):
        read_solution(f"ILSVRC2012_val_00000007,n1\n{line}".encode(), "list")


def test_another_archive_with_the_same_name_is_refused(data_of, tmp_path):
    with zipfile.ZipFile(tmp_path / ARCHIVE, "w") as archive:
        archive.writestr("train/china/00.JPEG", b"x")
    with pytest.raises(UserError, match=rf"{ARCHIVE}: has no file in {IMAGES}/train; download it again"):
        IlsvrcSource(data_of(tmp_path))


def test_a_compressed_tar_is_refused(data_of, tmp_path):
    (tmp_path / "imagenet_object_localization_patched2019.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"patched2019\.tar\.gz: cannot be read in place; extract it .*{SOLUTION}"):
        IlsvrcSource(data_of(tmp_path))

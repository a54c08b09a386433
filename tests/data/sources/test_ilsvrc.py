"""Simulated archives of the photographs; constants of the original are patched."""

import io
import os
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.preparation.verify import verify
from tencrop.data.sources import ilsvrc
from tencrop.data.sources.devkit import ARCHIVE, FOLDER, GROUND_TRUTH, META, SIMULATED, read_devkit
from tencrop.data.sources.ilsvrc import ARCHIVES, IlsvrcSource
from tencrop.data.sources.simulate import simulate, simulated_ids
from tencrop.data.store.manifest import open_split, read_manifest
from typed import present


@pytest.fixture(scope="module")
def archives(photo_folder, data_config, tmp_path_factory) -> Path:
    """The photographs as archives; not to be written to."""
    return simulate(data_config(photo_folder, tmp_path_factory.mktemp("ilsvrc")), progress=False)


@pytest.fixture
def copy(archives, tmp_path) -> Path:
    return Path(shutil.copytree(archives, tmp_path / "copy"))


@pytest.fixture
def open_source(data_config, tmp_path):
    return lambda folder, **options: IlsvrcSource(data_config(folder, tmp_path / "root", name="imagenet", **options))


def untar(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)


def extract(archives: Path, target: Path) -> Path:
    """Everything extracted: train/WNID/, a flat val/, the devkit's folder."""
    for split, name in ARCHIVES.items():
        untar(archives / name, target / split)
    for inner in (target / "train").glob("*.tar"):
        untar(inner, target / "train" / inner.stem)
        inner.unlink()
    untar(archives / ARCHIVE, target)
    return target


def samples(source) -> dict:
    return {
        split: [(file.name, file.label, source.read(split, file)) for file in files]
        for split, files in source.files.items()
    }


def test_the_archives_have_the_files_of_the_tree(archives, photo_folder, open_source):
    source = open_source(archives)
    assert source.classes == ["china", "flower", "mirrored"]
    assert source.location.routes == {"train": "tar", "val": "tar"}
    found = samples(source)
    for split, per_class in (("train", 8), ("val", 4)):
        names = [name for name, _, _ in found[split]]
        assert names == sorted(names)
        assert [label for _, label, _ in found[split]] == [0] * per_class + [1] * per_class + [2] * per_class
    for name, _, content in found["train"]:
        assert content == (photo_folder / "train" / name).read_bytes()
    for label, wnid in enumerate(source.classes):
        originals = {path.read_bytes() for path in (photo_folder / "val" / wnid).iterdir()}
        assert {content for _, found_label, content in found["val"] if found_label == label} == originals


def test_ids_are_not_the_sorted_order(archives):
    """Otherwise a wrong mapping would go unnoticed."""
    ids = simulated_ids(["china", "flower", "mirrored"])
    assert sorted(ids.values()) == [1, 2, 3]
    assert [ids[name] for name in ("china", "flower", "mirrored")] != [1, 2, 3]
    ground_truth = read_devkit(archives / ARCHIVE).ground_truth
    assert ground_truth != sorted(ground_truth)


def test_torchvision_reads_the_devkit(archives, monkeypatch):
    """An independent reader of meta.mat and the ground truth."""
    from torchvision.datasets import imagenet

    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)
    folder = Path(archives)
    imagenet.parse_devkit_archive(folder)
    wnid_to_classes, val_wnids = imagenet.load_meta_file(folder)
    (folder / "meta.bin").unlink()
    devkit = read_devkit(folder / ARCHIVE)
    assert sorted(wnid_to_classes) == sorted(devkit.wnids.values()) == ["china", "flower", "mirrored"]
    assert val_wnids == [devkit.wnids[number] for number in devkit.ground_truth]


def test_every_route_gives_the_same_samples(archives, open_source, tmp_path):
    extracted = extract(archives, tmp_path / "extracted")
    expected = samples(open_source(archives))
    source = open_source(extracted)
    assert source.location.routes == {"train": "tree", "val": "flat"}
    assert samples(source) == expected
    for file in source.files["val"]:
        target = extracted / "folders" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read("val", file))
    source = open_source(extracted, splits=("train", "folders"))
    assert source.location.routes == {"train": "tree", "val": "tree"}
    assert samples(source) == expected


def test_prepared_from_archives_as_from_the_tree(archives, photo_folder, data_config, tmp_path):
    """The training split is equal bit for bit; the validation images are those of the tree under other names."""
    data = data_config(archives, tmp_path / "root", name="imagenet")
    data.check_md5 = True
    root = prepare(data, workers=2, progress=False)
    tree = prepare(data_config(photo_folder, tmp_path / "tree"), workers=1, progress=False)
    assert (root / "train.beton").read_bytes() == (tree / "train.beton").read_bytes()
    assert read_manifest(root)["statistics"] == read_manifest(tree)["statistics"]
    assert open_split(root, "train").source_fingerprint == open_split(tree, "train").source_fingerprint
    assert read_manifest(root)["source"]["archives"].keys() == {*ARCHIVES.values(), ARCHIVE}
    hashes = [sorted(open_split(folder, "val").files["sha256"].tolist()) for folder in (root, tree)]
    assert hashes[0] == hashes[1]
    for name in ("train", "val"):
        split = open_split(root, name)
        for index in range(split.num_samples):
            content = split.read_original(index)
            assert np.array_equal(np.frombuffer(content, np.uint8)[:2], [0xFF, 0xD8]) or content[:4] == b"\x89PNG"
    verify(root, progress=False)
    assert prepare(data, progress=False) == root
    os.truncate(shutil.copytree(archives, tmp_path / "other") / ARCHIVES["val"], 1000)
    with pytest.raises(UserError, match=r"img_val\.tar: not the archive that .* was prepared from"):
        prepare(data_config(tmp_path / "other", root, name="imagenet"), progress=False)


def test_simulated_archives_do_not_change(archives, photo_folder, data_config, tmp_path):
    again = simulate(data_config(photo_folder, tmp_path / "again"), progress=False)
    assert (again / "MD5SUMS").read_text() == (archives / "MD5SUMS").read_text()
    with pytest.raises(UserError, match=r"already has ILSVRC2012_img_train\.tar"):
        simulate(data_config(photo_folder, again), progress=False)


def test_md5_of_other_archives(copy, data_config, tmp_path):
    data = data_config(copy, tmp_path / "root", name="imagenet")
    data.check_md5 = True
    listed = (copy / "MD5SUMS").read_text()
    (copy / "MD5SUMS").write_text("0" * 32 + listed[32:])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar: its MD5 is [0-9a-f]{32}, but 0{32} was published"):
        prepare(data, progress=False)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (None, "MD5SUMS, the list of the archives' MD5, is missing"),
        ("", r"there is no MD5 of ILSVRC2012_devkit_t12\.tar\.gz to compare with"),
        ("0" * 31 + "  ILSVRC2012_img_train.tar\n", "'0{31}  ILSVRC2012_img_train.tar' is not an MD5"),
        ("\xff\0", "is not an MD5 and a file name"),
    ],
)
def test_unusable_lists_of_md5(copy, data_config, tmp_path, listed, message):
    data = data_config(copy, tmp_path / "root", name="imagenet")
    data.check_md5 = True
    (copy / "MD5SUMS").unlink()
    if listed is not None:
        (copy / "MD5SUMS").write_text(listed, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        prepare(data, progress=False)
    assert not list((tmp_path / "root").iterdir())


@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_archives_are_refused(copy, open_source, split):
    path = copy / ARCHIVES[split]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{ARCHIVES[split]}.*(truncated|damaged)"):
        open_source(copy)


def test_counts(copy, open_source, monkeypatch):
    """Counts must be ILSVRC2012's unless the devkit is simulated; a subset is accepted if requested."""
    with tarfile.open(copy / ARCHIVES["val"]) as archive:
        members = [(member, present(archive.extractfile(member)).read()) for member in archive]
    with tarfile.open(copy / ARCHIVES["val"], "w") as archive:
        for member, content in members[:-1]:
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(
        UserError, match=r"1 val images of the devkit's ground truth are missing; set data\.subset=true"
    ):
        open_source(copy)
    extracted = copy / FOLDER
    untar(copy / ARCHIVE, copy)
    (copy / ARCHIVE).unlink()
    (extracted / SIMULATED).unlink()
    with pytest.raises(UserError, match="24 train images, but ILSVRC2012 has 1,281,167"):
        open_source(copy)
    monkeypatch.setattr(ilsvrc, "NUM_IMAGES", {"train": 24, "val": 11})
    monkeypatch.setattr(ilsvrc, "NUM_VAL_IMAGES_OF_A_CLASS", 4)
    with pytest.raises(UserError, match=r"class \w+ has 3 val images, but the devkit lists 4"):
        open_source(copy)


def test_a_class_that_lost_images(copy, open_source):
    extracted = extract(copy, copy / "extracted")
    next((extracted / "train/flower").iterdir()).unlink()
    with pytest.raises(
        UserError, match=r"class flower has 7 train images, but the devkit lists 8; set data\.subset=true"
    ):
        open_source(extracted)


def test_a_missing_or_damaged_devkit_is_refused(copy, open_source):
    content = (copy / ARCHIVE).read_bytes()
    (copy / ARCHIVE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a tar archive, or damaged"):
        open_source(copy)
    (copy / ARCHIVE).unlink()
    with pytest.raises(UserError, match=r"classes of the validation images are in ILSVRC2012_devkit_t12\.tar\.gz"):
        open_source(copy)
    (copy / FOLDER / "data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no data/meta\.mat"):
        open_source(copy)
    (copy / FOLDER / META).write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    (copy / FOLDER / GROUND_TRUTH).write_text("1\n2\n")
    with pytest.raises(UserError, match="not the table of synsets"):
        open_source(copy)


def test_a_pipe_among_flat_validation_images_is_refused(tmp_path):
    os.mkfifo(tmp_path / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="is no plain file"):
        ilsvrc._flat_files(tmp_path, Counter())

"""ImageNet-V2, -A, -R and -Sketch: made-up archives and folders of the published shapes."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.preparation.verify import verify
from tencrop.data.sources.class_names import imagenet_wnids
from tencrop.data.sources.imagenet_test_sets import TEST_SETS, ImagenetTestSource, check_has_training_split
from tencrop.data.sources.imagenet_test_sets import classes_within as within
from tencrop.data.store.manifest import open_split, read_manifest
from typed import present

V2 = "imagenetv2-matched-frequency-format-val"
WNIDS = imagenet_wnids()


@pytest.fixture
def open_test_set(data_config) -> Callable:
    """open_test_set("imagenet_a", folder): its source; subset=True accepts a part of it."""

    def build(name: str, source: Path, *, subset: bool = True) -> ImagenetTestSource:
        return ImagenetTestSource(config_of(data_config, name, source, subset=subset))

    return build


def config_of(data_config, name: str, source: Path, *, root: Path | str = "unused", subset: bool = True):
    config = data_config(source, root, name=name, splits=("", TEST_SETS[name].folder), num_classes=1000)
    return replace(config, subset=subset)


def jpeg(shade: int) -> bytes:
    """A file whose pixels tell which image it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (shade % 256, shade // 256 * 32, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def labels_of(source: ImagenetTestSource) -> dict[str, int]:
    return {file.name: file.label for file in source.files["val"]}


def test_the_folder_of_v2_is_the_label(open_test_set, tmp_path):
    """As text, 10 comes before 2: the rank of a folder would be another class for all but a few."""
    write(tmp_path, {f"{V2}/{label}/{label:04x}.jpeg": b"x" for label in range(1000)})
    source = open_test_set("imagenet_v2", tmp_path)
    assert labels_of(source) == {f"{label}/{label:04x}.jpeg": label for label in range(1000)}
    assert source.classes == list(WNIDS) == sorted(WNIDS)
    names = [os.fsencode(file.name.partition("/")[0]) for file in source.files["val"]]
    assert names == sorted(names), "samples are in the order of all sources"
    inner = open_test_set("imagenet_v2", tmp_path / V2)
    assert inner.files == source.files, "the folder itself may be named as data.source"


@pytest.mark.parametrize(("name", "folder"), [("imagenet_a", "imagenet-a"), ("imagenet_r", "imagenet-r")])
def test_labels_of_200_classes_are_those_of_all_1000(open_test_set, tmp_path, name, folder):
    classes = imagenet_wnids(name)
    write(tmp_path, {f"{folder}/{wnid}/0.jpg": b"x" for wnid in classes} | {f"{folder}/README.txt": b"n0 a class"})
    found = labels_of(open_test_set(name, tmp_path))
    assert found == {f"{wnid}/0.jpg": WNIDS.index(wnid) for wnid in classes}
    assert sorted(found.values()) != list(range(200)), "ranks among the 200 would be other classes"
    assert present(within(name)).tolist() == sorted(found.values())


def test_only_a_and_r_have_fewer_classes():
    restricted = {name for name in TEST_SETS if within(name) is not None}
    assert restricted == {"imagenet_a", "imagenet_r"} and within("imagenet") is None


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_sketch"])
def test_an_archive_holds_the_same_as_its_folder(open_test_set, tmp_path, name):
    published, ending = TEST_SETS[name], {"imagenet_a": "jpg", "imagenet_sketch": "JPEG"}[name]
    files = {
        f"{published.folder}/{wnid}/{number}.{ending}": jpeg(40 * number + row)
        for row, wnid in enumerate(imagenet_wnids(published.classes)[7:10])
        for number in (2, 10)
    }
    folder = write(tmp_path / "folder", files)
    (tmp_path / "archive").mkdir()
    path, extra = tmp_path / "archive" / published.archive, {f"{published.folder}/README.txt": b"about"}
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for member, content in (extra | files).items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in (extra | files).items():
                archive.writestr(member, content)
    one, other = open_test_set(name, folder), open_test_set(name, tmp_path / "archive")
    assert labels_of(one) == labels_of(other) and len(labels_of(one)) == 6
    assert [one.read("val", file) for file in one.files["val"]] == [
        other.read("val", file) for file in other.files["val"]
    ]
    assert other.left_out["val"] == {".txt": 1}


def test_prepared_without_a_training_split(data_config, tmp_path, capsys):
    files = {f"{V2}/{label}/{number}.jpeg": jpeg(label) for label in (0, 2, 10, 999) for number in range(2)}
    data = config_of(data_config, "imagenet_v2", write(tmp_path / "source", files), root=tmp_path / "root")
    root = prepare(data, workers=1)
    assert "imagenet_v2: 8 val images of 1,000 classes" in capsys.readouterr().out
    manifest = read_manifest(root, "imagenet_v2")
    assert (manifest["name"], list(manifest["splits"])) == ("imagenet_v2", ["val"])
    assert "statistics" not in manifest and manifest["classes"] == list(WNIDS)
    split = open_split(root, "val", data="imagenet_v2")
    assert split.labels.tolist() == [0, 0, 10, 10, 2, 2, 999, 999]
    for index in range(split.num_samples):
        assert split.read_original(index) == jpeg(int(split.labels[index]))
    with pytest.raises(UserError, match="prepared without a split train; it has val"):
        open_split(root, "train", data="imagenet_v2")
    prepare(data, workers=1)
    verify(root, "imagenet_v2")
    assert "already prepared" in (out := capsys.readouterr().out) and "as it was prepared" in out
    (tmp_path / "source" / V2 / "10" / "0.jpeg").write_bytes(b"another")
    with pytest.raises(UserError, match="not the files that"):
        prepare(data, workers=1, progress=False)


def complete_v2(folder: Path) -> Path:
    return write(folder, {f"{V2}/{label}/{number}.jpeg": b"x" for label in range(1000) for number in range(10)})


def test_a_complete_set_is_required(open_test_set, tmp_path):
    folder = complete_v2(tmp_path)
    assert len(open_test_set("imagenet_v2", folder, subset=False).files["val"]) == 10_000
    (folder / V2 / "17" / "0.jpeg").unlink()
    with pytest.raises(UserError, match=r"9,999 images, but ImageNet-V2 MatchedFrequency has 10,000; .*data.subset"):
        open_test_set("imagenet_v2", folder, subset=False)
    (folder / V2 / "18" / "twice.jpeg").write_bytes(b"x")  # the total is right again
    with pytest.raises(UserError, match="class 17 has 9 images, but ImageNet-V2 MatchedFrequency has 10"):
        open_test_set("imagenet_v2", folder, subset=False)
    assert len(open_test_set("imagenet_v2", folder).files["val"]) == 10_000
    (folder / V2 / "18").rename(folder / "moved")
    with pytest.raises(UserError, match="the class folder 18 of ImageNet-V2 MatchedFrequency is missing"):
        open_test_set("imagenet_v2", folder, subset=False)


REFUSED = {
    "WNIDs in V2": ("imagenet_v2", f"{V2}/n01440764/0.jpeg", "folders are named 0 to 999"),
    "leading zeros": ("imagenet_v2", f"{V2}/007/0.jpeg", "the class folder 007 is none of ImageNet-V2"),
    "label 1000": ("imagenet_v2", f"{V2}/1000/0.jpeg", "the class folder 1000 is none of"),
    "a class not of A's 200": ("imagenet_a", "imagenet-a/n01440764/0.jpg", "n01440764 is none of ImageNet-A, .* 200"),
    "numbers in Sketch": ("imagenet_sketch", "sketch/5/sketch_0.JPEG", "5 is none of ImageNet-Sketch"),
    "no folder": ("imagenet_r", "elsewhere/x.jpg", "imagenet-r does not exist .*has elsewhere"),
    "another variant": ("imagenet_v2", "imagenetv2-top-images-format-val/3/0.jpeg", "data=imagenet_v2_top_images"),
    "not extracted": ("imagenet_v2", "imagenetv2-matched-frequency.tar.gz", "is compressed.*tar xzf"),
    "a damaged tar": ("imagenet_r", "imagenet-r.tar", "damaged or truncated|not a tar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(open_test_set, tmp_path, case):
    name, file, message = REFUSED[case]
    write(tmp_path, {file: b"x"})
    source = tmp_path / "imagenetv2-top-images-format-val" if case == "another variant" else tmp_path
    with pytest.raises(UserError, match=message):
        open_test_set(name, source)


def test_store_options_are_refused(data_config, tmp_path):
    write(tmp_path, {f"{V2}/3/0.jpeg": b"x"})
    data = config_of(data_config, "imagenet_v2", tmp_path)
    data.store.short_side = 256
    with pytest.raises(UserError, match=r"keeps its original files; leave data\.store out"):
        ImagenetTestSource(data)


def test_nothing_trains_on_a_test_set():
    check_has_training_split("imagenet")
    with pytest.raises(
        UserError, match=r"ImageNet-R is a test set without training images; evaluate .*data=imagenet_r"
    ):
        check_has_training_split("imagenet_r")


def test_configurations_agree_with_what_was_published(composed):
    for name, published in TEST_SETS.items():
        data = composed(f"data={name}").data
        assert (data.name, data.splits.val, data.num_classes) == (name, published.folder, 1000)
        assert len(published.labels) == (1000 if within(name) is None else 200)
    assert np.array_equal(list(TEST_SETS["imagenet_sketch"].labels.values()), np.arange(1000))

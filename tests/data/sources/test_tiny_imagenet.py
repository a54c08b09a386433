import os
import zipfile
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.tiny_imagenet import TinyImagenetSource
from tencrop.data.store.manifest import open_split

WNIDS = {"n01443537": "flower", "n01629819": "china", "n01641577": "mirrored"}


@pytest.fixture
def files(photo_folder) -> dict[str, bytes]:
    """As published, but with three classes: 8 training images of each and 12 validation images, unsorted."""
    files = {"wnids.txt": "\n".join(reversed(WNIDS)).encode(), "words.txt": b"n01443537\tgoldfish\n"}
    val = []
    for wnid, name in WNIDS.items():
        for number, path in enumerate(sorted((photo_folder / "train" / name).iterdir())):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = path.read_bytes()
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0\t0\t1\t1\n"
        val += [(wnid, path.read_bytes()) for path in sorted((photo_folder / "val" / name).iterdir())]
    order = [(7 * number) % 12 for number in range(12)]
    for number, place in enumerate(order):
        files[f"val/images/val_{number}.JPEG"] = val[place][1]
    lines = [f"val_{number}.JPEG\t{val[place][0]}\t0\t0\t1\t1" for number, place in enumerate(order)]
    files["val/val_annotations.txt"] = ("\n".join(lines) + "\n").encode()
    files["test/images/test_0.JPEG"] = val[0][1]
    return files


def write(folder: Path, files: dict[str, bytes], *, zipped: bool) -> Path:
    folder.mkdir()
    if zipped:
        with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny-imagenet-200/", b"")
            for name, content in files.items():
                archive.writestr(f"tiny-imagenet-200/{name}", content)
    else:
        for name, content in files.items():
            path = folder / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def test_archive_and_folder_hold_the_same(files, photo_folder, tmp_path):
    found = []
    for zipped in (True, False):
        source = TinyImagenetSource(write(tmp_path / str(zipped), files, zipped=zipped), subset=True)
        assert source.classes == sorted(WNIDS)
        found.append(
            {
                split: [(file.name, file.label, source.read(split, file)) for file in files_of_split]
                for split, files_of_split in source.files.items()
            }
        )
    assert found[0] == found[1]
    assert len(found[0]["train"]) == 24
    assert found[0]["train"][0][0] == "n01443537/images/n01443537_0.JPEG"
    for label, wnid in enumerate(sorted(WNIDS)):
        originals = sorted(path.read_bytes() for path in (photo_folder / "val" / WNIDS[wnid]).iterdir())
        assert sorted(content for _, found_label, content in found[0]["val"] if found_label == label) == originals


@pytest.mark.parametrize("zipped", [True, False])
def test_prepared(files, data_config, tmp_path, zipped):
    data = data_config(write(tmp_path / "source", files, zipped=zipped), tmp_path / "root", name="tiny_imagenet")
    with pytest.raises(UserError, match=r"24 train images, but Tiny ImageNet has 100,000; set data\.subset=true"):
        prepare(data, progress=False)
    data.subset = True
    root = prepare(data, workers=1, progress=False)
    source = TinyImagenetSource(tmp_path / "source", subset=True)
    for name in ("train", "val"):
        split = open_split(root, name)
        for index, file in enumerate(source.files[name]):
            assert split.names(index) == file.name
            assert split.read_original(index) == source.read(name, file)


@pytest.mark.parametrize("inner", ["", "images/"])
def test_validation_images_sorted_into_classes(files, tmp_path, inner):
    """As common scripts do, which may leave val/images and the annotations behind; gives the same samples."""
    expected = TinyImagenetSource(write(tmp_path / "flat", files, zipped=False), subset=True)
    classes = dict(line.split("\t")[:2] for line in files["val/val_annotations.txt"].decode().splitlines())
    sorted_files = {
        f"val/{classes[name.rpartition('/')[2]]}/{inner}{name.rpartition('/')[2]}"
        if name.startswith("val/images/")
        else name: content
        for name, content in files.items()
    }
    sorted_files["val/images/.DS_Store"] = b"x"
    source = TinyImagenetSource(write(tmp_path / "sorted", sorted_files, zipped=False), subset=True)
    for split in ("train", "val"):
        assert [source.read(split, file) for file in source.files[split]] == [
            expected.read(split, file) for file in expected.files[split]
        ]
        assert [file.label for file in source.files[split]] == [file.label for file in expected.files[split]]
    path = tmp_path / "sorted/tiny-imagenet-200"
    moved = source.files["val"][0].name
    target = path / "val" / moved.replace("n01443537", "n01629819")
    (path / "val" / moved).rename(target)
    with pytest.raises(UserError, match=r"is in the folder of n01629819, but val/val_annotations.txt says n01443537"):
        TinyImagenetSource(tmp_path / "sorted", subset=True)
    (path / "val/val_annotations.txt").unlink()
    assert len(TinyImagenetSource(tmp_path / "sorted", subset=True).files["val"]) == 12


@pytest.mark.parametrize("zipped", [True, False])
def test_files_added_by_macos_are_left_out(files, tmp_path, zipped):
    expected = TinyImagenetSource(write(tmp_path / "plain", files, zipped=zipped), subset=True)
    added: dict[str, bytes] = {}
    for name, content in files.items():
        folder, _, file = name.rpartition("/")
        added |= {name: content, f"{folder}/._{file}".removeprefix("/"): b"\0\5\x16\7"}
    added["val/images/Thumbs.db"] = b"x"
    source = TinyImagenetSource(write(tmp_path / "added", added, zipped=zipped), subset=True)
    for split in ("train", "val"):
        assert [file.name for file in source.files[split]] == [file.name for file in expected.files[split]]
    assert source.left_out["val"] == {"hidden": 12, ".db": 1}
    assert source.left_out["train"]["hidden"] == 24 + 3  # and of the boxes


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_image_among_those_of_another_class(files, tmp_path, zipped):
    files["train/n01629819/images/n01443537_0.JPEG"] = files.pop("train/n01443537/images/n01443537_0.JPEG")
    with pytest.raises(
        UserError, match=r"n01443537_0.JPEG: is in the folder of n01629819, but its name says n01443537"
    ):
        TinyImagenetSource(write(tmp_path / "source", files, zipped=zipped), subset=True)


def test_a_class_folder_that_is_missing(files, tmp_path):
    without = {name: content for name, content in files.items() if not name.startswith("train/n01443537")}
    with pytest.raises(
        UserError, match=r"train: the folder of class n01443537 is missing; extract tiny-imagenet-200\.zip"
    ):
        TinyImagenetSource(write(tmp_path / "train", without, zipped=False), subset=True)
    without = {name: content for name, content in files.items() if not name.startswith("val/images")}
    with pytest.raises(UserError, match=r"val: the folder of class n01443537 is missing \(nor has val/images"):
        TinyImagenetSource(write(tmp_path / "val", without, zipped=False), subset=True)


def test_an_image_without_annotation(files, tmp_path):
    files["val/images/val_12.JPEG"] = files["val/images/val_0.JPEG"]
    with pytest.raises(UserError, match=r"has no class from wnids\.txt for val_12\.JPEG"):
        TinyImagenetSource(write(tmp_path / "source", files, zipped=True), subset=True)


def test_missing_files_are_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"has neither tiny-imagenet-200\.zip nor the folder"):
        TinyImagenetSource(tmp_path)
    del files["val/val_annotations.txt"]
    with pytest.raises(UserError, match=r"has no tiny-imagenet-200/val/val_annotations\.txt"):
        TinyImagenetSource(write(tmp_path / "source", files, zipped=True))


def test_a_pipe_among_the_validation_images_is_refused(files, tmp_path):
    folder = write(tmp_path / "source", files, zipped=False)
    os.mkfifo(folder / "tiny-imagenet-200/val/images/val_99.JPEG")
    with pytest.raises(UserError, match="is no plain file"):
        TinyImagenetSource(folder, subset=True)

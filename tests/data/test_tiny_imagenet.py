import zipfile
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.data.manifest import open_split
from tencrop.data.prepare import prepare
from tencrop.data.tiny_imagenet import TinyImagenetSource

WNIDS = {"n01443537": "flower", "n01629819": "china", "n01641577": "mirrored"}


@pytest.fixture
def files(photo_folder) -> dict[str, bytes]:
    """As published, with three classes: 8 training images of each and 12 validation images in no order."""
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
    with pytest.raises(UserError, match=r"24 train images, and Tiny ImageNet has 100,000; set data\.subset=true"):
        prepare(data, progress=False)
    data.subset = True
    root = prepare(data, workers=1, progress=False)
    source = TinyImagenetSource(tmp_path / "source", subset=True)
    for name in ("train", "val"):
        split = open_split(root, name)
        for index, file in enumerate(source.files[name]):
            assert split.names(index) == file.name
            assert split.read_original(index) == source.read(name, file)


def test_an_image_without_annotation(files, tmp_path):
    files["val/images/val_12.JPEG"] = files["val/images/val_0.JPEG"]
    with pytest.raises(UserError, match=r"gives no class of wnids\.txt to val_12\.JPEG"):
        TinyImagenetSource(write(tmp_path / "source", files, zipped=True), subset=True)


def test_what_is_missing(files, tmp_path):
    with pytest.raises(UserError, match=r"holds neither tiny-imagenet-200\.zip nor the folder"):
        TinyImagenetSource(tmp_path)
    del files["val/val_annotations.txt"]
    with pytest.raises(UserError, match=r"holds no tiny-imagenet-200/val/val_annotations\.txt"):
        TinyImagenetSource(write(tmp_path / "source", files, zipped=True))

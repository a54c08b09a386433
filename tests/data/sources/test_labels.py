"""Folders, names and devkit that contradict each other for one image or for all."""

import shutil
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.data.sources.devkit import ARCHIVE
from tencrop.data.sources.ilsvrc import ARCHIVES, IlsvrcSource
from tencrop.data.sources.kaggle import SOLUTION
from tencrop.data.sources.labels import class_in_name
from tencrop.data.sources.simulate import simulate

WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def tree(photo_folder, tmp_path) -> Path:
    """The photographs with WNIDs as classes, and training images named as in ImageNet."""
    for split in ("train", "val"):
        for wnid, folder in zip(WNIDS, sorted((photo_folder / split).iterdir()), strict=True):
            target = tmp_path / "tree" / split / wnid
            target.mkdir(parents=True)
            for number, path in enumerate(sorted(folder.iterdir())):
                shutil.copy(path, target / (f"{wnid}_{number}.JPEG" if split == "train" else f"{number}.JPEG"))
    return tmp_path / "tree"


@pytest.fixture
def archives(tree, data_config, tmp_path) -> Path:
    return simulate(data_config(tree, tmp_path / "archives"), progress=False)


@pytest.fixture
def open_source(data_config, tmp_path):
    return lambda folder: IlsvrcSource(data_config(folder, tmp_path / "root", name="imagenet"))


@pytest.fixture
def folders(archives, tree, open_source, tmp_path) -> Path:
    """Class folders of both splits, the devkit beside them."""
    source = open_source(archives)
    for file in source.files["val"]:
        path = tmp_path / "folders/val" / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read("val", file))
    shutil.copytree(tree / "train", tmp_path / "folders/train")
    shutil.copy(archives / ARCHIVE, tmp_path / "folders")
    return tmp_path / "folders"


def test_one_validation_image_in_another_folder(folders, open_source):
    assert len(open_source(folders).files["val"]) == 12
    path = min((folders / "val" / WNIDS[0]).iterdir())
    path.rename(folders / "val" / WNIDS[1] / path.name)
    with pytest.raises(
        UserError,
        match=rf"val/{WNIDS[1]}/{path.name}: is in the folder of {WNIDS[1]}, but the devkit says {WNIDS[0]};",
    ):
        open_source(folders)


def test_folders_by_another_order_of_the_classes(folders, open_source):
    """The valprep mistake: all images of a class are together, under the name of the next class."""
    for wnid in WNIDS:
        (folders / "val" / wnid).rename(folders / "val" / f"{wnid}.old")
    for wnid, following in zip(WNIDS, (*WNIDS[1:], WNIDS[0]), strict=True):
        (folders / "val" / f"{wnid}.old").rename(folders / "val" / following)
    with pytest.raises(UserError, match=r"but the devkit says n\d{8} \(11 more images contradict\); sort the images"):
        open_source(folders)


def test_kaggles_list_is_compared_if_there_is_no_devkit(folders, open_source, archives, data_config, tmp_path):
    lines = [
        f"{file.name.rpartition('/')[2].removesuffix('.JPEG')},{WNIDS[file.label]} 1 2 3 4"
        for file in open_source(folders).files["val"]
    ]
    (folders / ARCHIVE).unlink()
    data = data_config(folders, tmp_path / "root", name="imagenet")
    data.subset = True
    (folders / SOLUTION).write_text("\n".join(lines))
    assert len(IlsvrcSource(data).files["val"]) == 12
    (folders / SOLUTION).write_text("\n".join([lines[0].replace(WNIDS[0], WNIDS[2]), *lines[1:]]))
    with pytest.raises(UserError, match=rf"folder of {WNIDS[0]}, but .*{SOLUTION} says {WNIDS[2]}"):
        IlsvrcSource(data)


def test_a_validation_image_that_the_devkit_does_not_know(folders, open_source):
    shutil.copy(
        folders / f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG", folders / f"val/{WNIDS[0]}/ILSVRC2012_val_00000013.JPEG"
    )
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000013\.JPEG: .* the devkit says none of its classes"):
        open_source(folders)


def test_a_training_image_of_another_class(folders, tree, open_source, data_config, tmp_path):
    """In class folders and in the archive."""
    sentence = rf"{WNIDS[1]}/{WNIDS[0]}_0\.JPEG: is in the folder of {WNIDS[1]}, but its name says {WNIDS[0]};"
    for root in (folders, tree):
        (root / f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG").rename(root / f"train/{WNIDS[1]}/{WNIDS[0]}_0.JPEG")
    with pytest.raises(UserError, match="folders/train/" + sentence):
        open_source(folders)
    again = simulate(data_config(tree, tmp_path / "again"), progress=False)
    with pytest.raises(UserError, match=f"{ARCHIVES['train']}/" + sentence):
        open_source(again)


def test_names_without_a_class():
    assert class_in_name("n01440764_10026.JPEG") == "n01440764"
    assert class_in_name("ILSVRC2012_val_00000001.JPEG") is class_in_name("0001.JPEG") is None

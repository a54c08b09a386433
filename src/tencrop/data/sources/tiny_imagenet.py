"""Tiny ImageNet as a source: tiny-imagenet-200.zip as published, or the folder that it extracts to.

wnids.txt                          the 200 classes
train/WNID/images/WNID_0.JPEG      500 of each class
val/images/val_0.JPEG              10,000
val/val_annotations.txt            a line for each image: name, WNID and a box, separated by tabs

In an extracted folder the validation images may also be sorted into val/WNID, as many scripts do. Annotations, file
names and folders must then agree on the class of every image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tencrop.config import UserError
from tencrop.data.sources.archives import Member, zip_members
from tencrop.data.sources.folder import EXTENSIONS, check_no_shards, kind_of, list_images, size_of_file, subfolders
from tencrop.data.sources.labels import check_folders, check_names
from tencrop.data.sources.source import FLAT, TREE, ZIP, SourceFile, SourceLocation, read_file, read_original

FOLDER = "tiny-imagenet-200"
ARCHIVE = f"{FOLDER}.zip"
ANNOTATIONS = "val/val_annotations.txt"
NUM_IMAGES = {"train": 100_000, "val": 10_000}


class TinyImagenetSource:
    """The images of Tiny ImageNet, from the archive or its extracted folder.

    Raises UserError for missing files, for images without a class, and unless `subset` for other image counts.
    """

    def __init__(self, path: Path, *, subset: bool = False) -> None:
        self.left_out: dict[str, Counter[str]] = {split: Counter() for split in NUM_IMAGES}
        folder = next((path / name for name in (FOLDER, ".") if (path / name / "wnids.txt").is_file()), None)
        # The archive comes first: its folder may be a copy that a script has sorted or completed.
        if (path / ARCHIVE).is_file():
            routes, splits = dict.fromkeys(NUM_IMAGES, ZIP), dict.fromkeys(NUM_IMAGES, ARCHIVE)
            self.location = SourceLocation(str(path), splits, routes, {ARCHIVE: (path / ARCHIVE).stat().st_size})
            self._read_archive(path / ARCHIVE)
        elif folder is not None:
            within = folder.relative_to(path)  # relative, because data.source may change when the files are moved
            is_flat = _is_flat(folder / "val/images")
            splits = {"train": str(within / "train"), "val": str(within / ("val/images" if is_flat else "val"))}
            self.location = SourceLocation(str(path), splits, {"train": TREE, "val": FLAT if is_flat else TREE})
            self._read_folder(folder)
        else:
            check_no_shards(path)
            raise UserError(f"data.source={path}: has neither {ARCHIVE} nor the folder {FOLDER}; put one there")
        for split, expected in NUM_IMAGES.items():
            # A download that broke off is a valid folder with fewer images, which nothing else would notice.
            if not subset and len(self.files[split]) != expected:
                raise UserError(
                    f"data.source={path}: {len(self.files[split]):,} {split} images, but Tiny ImageNet has"
                    f" {expected:,}; set data.subset=true if this is intended"
                )

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.location, split, file)

    def published_md5(self) -> dict[str, str]:
        return {}  # its authors publish none

    def _read_archive(self, path: Path) -> None:
        members = {member.name.removeprefix(f"{FOLDER}/"): member for member in zip_members(path)}
        location = SourceLocation(str(path.parent), {"text": path.name}, {"text": ZIP})

        def text(name: str) -> str:
            if name not in members:
                raise UserError(f"{path}: has no {FOLDER}/{name}; download it again")
            return read_original(location, "text", _file(name, 0, members[name])).decode(errors="replace")

        self.classes = _classes(text("wnids.txt"))
        train = []
        for name, member in members.items():
            split, _, rest = name.partition("/")
            wnid, _, image = rest.partition("/")
            if split != "train" or wnid not in self.classes:
                continue  # val is read below; test has no labels
            if _is_image(image.rpartition("/")[2], self.left_out["train"]):
                train.append(_file(rest, self.classes.index(wnid), member))
        check_names(path, train)
        # Names without the top folder, so that archive and folder give the same samples in the same order.
        images = (member._replace(name=name) for name, member in members.items() if name.startswith("val/images/"))
        self.files = {
            "train": sorted(train, key=lambda file: (file.label, os.fsencode(file.name))),
            "val": _annotated(images, text, self.classes, path, self.left_out["val"]),
        }

    def _read_folder(self, path: Path) -> None:
        def text(name: str) -> str:
            return read_file(path / name).decode(errors="replace")

        self.classes = _classes(text("wnids.txt"))
        train = self._class_folders(path, "train")
        if self.location.routes["val"] == FLAT:
            with os.scandir(path / "val/images") as entries:
                images = [Member(entry.name, 0, 0 if entry.is_dir() else size_of_file(entry)) for entry in entries]
            val = _annotated(images, text, self.classes, path, self.left_out["val"])
        else:
            # Sorted by a script: its result is checked against the annotations, if they are still there.
            val = self._class_folders(path, "val")
            if (path / ANNOTATIONS).is_file():
                check_folders(path / "val", val, _annotations(text(ANNOTATIONS)).get, stated_by=ANNOTATIONS)
        self.files = {"train": train, "val": val}

    def _class_folders(self, path: Path, split: str) -> list[SourceFile]:
        there = subfolders(path / split) if (path / split).is_dir() else []
        if missing := [name for name in self.classes if name not in there]:
            also = " (nor has val/images the validation images)" if split == "val" else ""
            raise UserError(
                f"{path / split}: the folder of class {missing[0]} is missing{also}; extract {ARCHIVE} again"
            )
        files = list_images(path / split, self.classes, self.left_out[split])
        check_names(path / split, files)
        return files


def _is_flat(folder: Path) -> bool:
    """Whether images are directly in the folder. Scripts that sort them into classes may leave it behind empty."""
    return folder.is_dir() and any(_is_image(name, Counter()) for name in os.listdir(folder))


def _is_image(name: str, left_out: Counter[str]) -> bool:
    """Whether the name is that of an image; counts it in `left_out` if not."""
    if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
        return True
    left_out[kind_of(name)] += 1
    return False


def _classes(content: str) -> list[str]:
    # Sorted: wnids.txt is in another order, and labels are ranks among sorted names in every source.
    return sorted(content.split(), key=os.fsencode)


def _annotations(content: str) -> dict[str, str]:
    """The class of every validation image by its file name."""
    lines = (line.split("\t") for line in content.splitlines() if line.strip())
    return {line[0]: line[1] for line in lines if len(line) > 1}


def _annotated(
    images: Iterable[Member], text: Callable[[str], str], classes: list[str], path: Path, left_out: Counter[str]
) -> list[SourceFile]:
    """The validation images in sample order, with the classes from the annotations."""
    wnids = _annotations(text(ANNOTATIONS))
    files = []
    for member in images:
        name = member.name.rpartition("/")[2]
        if not _is_image(name, left_out):
            continue
        if wnids.get(name) not in classes:
            raise UserError(f"{path}: {ANNOTATIONS} has no class from wnids.txt for {name}; download it again")
        files.append(_file(f"{wnids[name]}/{name}", classes.index(wnids[name]), member))
    return sorted(files, key=lambda file: (file.label, os.fsencode(file.name)))


def _file(name: str, label: int, member: Member) -> SourceFile:
    return SourceFile(name, label, member.num_bytes, member.offset)

"""Tiny ImageNet as a source: tiny-imagenet-200.zip as published, or the folder that it extracts to. Called by prepare.

wnids.txt                          the 200 classes
train/WNID/images/WNID_0.JPEG      500 of each
val/images/val_0.JPEG              10,000
val/val_annotations.txt            a line an image: name, WNID and a box, separated by tabs
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tencrop.config import UserError
from tencrop.data.archives import Member, zip_members
from tencrop.data.folder import list_images
from tencrop.data.originals import FLAT, TREE, ZIP, Place, SourceFile, read_file, read_original

FOLDER = "tiny-imagenet-200"
ARCHIVE = f"{FOLDER}.zip"
NUM_IMAGES = {"train": 100_000, "val": 10_000}


class TinyImagenetSource:
    """Raises UserError for missing files, images without a class, and other counts unless `subset`."""

    def __init__(self, path: Path, *, subset: bool = False) -> None:
        folder = next((path / name for name in (FOLDER, ".") if (path / name / "wnids.txt").is_file()), None)
        if (path / ARCHIVE).is_file():
            routes, splits = dict.fromkeys(NUM_IMAGES, ZIP), dict.fromkeys(NUM_IMAGES, ARCHIVE)
            self.place = Place(str(path), splits, routes, {ARCHIVE: (path / ARCHIVE).stat().st_size})
            self._read_archive(path / ARCHIVE)
        elif folder is not None:
            within = folder.relative_to(path)  # from data.source, which may be named anew where the files have moved
            splits = {"train": str(within / "train"), "val": str(within / "val/images")}
            self.place = Place(str(path), splits, {"train": TREE, "val": FLAT})
            self._read_folder(folder)
        else:
            raise UserError(f"data.source={path}: holds neither {ARCHIVE} nor the folder {FOLDER}; put one there")
        for split, expected in NUM_IMAGES.items():
            if not subset and len(self.files[split]) != expected:
                raise UserError(
                    f"data.source={path}: {len(self.files[split]):,} {split} images, and Tiny ImageNet has"
                    f" {expected:,}; set data.subset=true if that is meant"
                )

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.place, split, file)

    def published_md5(self) -> dict[str, str]:
        return {}  # none is

    def _read_archive(self, path: Path) -> None:
        members = {member.name.removeprefix(f"{FOLDER}/"): member for member in zip_members(path)}
        place = Place(str(path.parent), {"text": path.name}, {"text": ZIP})

        def text(name: str) -> str:
            if name not in members:
                raise UserError(f"{path}: holds no {FOLDER}/{name}; download it again")
            return read_original(place, "text", _file(name, 0, members[name])).decode(errors="replace")

        self.classes = _classes(text("wnids.txt"))
        train = []
        for name, member in members.items():
            split, _, rest = name.partition("/")
            wnid, _, image = rest.partition("/")
            if split == "train" and image.endswith(".JPEG") and wnid in self.classes:
                train.append(_file(rest, self.classes.index(wnid), member))
        images = (member._replace(name=name) for name, member in members.items() if name.startswith("val/images/"))
        self.files = {
            "train": sorted(train, key=lambda file: (file.label, os.fsencode(file.name))),
            "val": _annotated(images, text, self.classes, path),
        }

    def _read_folder(self, path: Path) -> None:
        def text(name: str) -> str:
            return read_file(path / name).decode(errors="replace")

        self.classes = _classes(text("wnids.txt"))
        with os.scandir(path / "val/images") as entries:
            images = [Member(entry.name, 0, entry.stat().st_size) for entry in entries]
        self.files = {
            "train": list_images(path / "train", self.classes),
            "val": _annotated(images, text, self.classes, path),
        }


def _classes(content: str) -> list[str]:
    return sorted(content.split(), key=os.fsencode)


def _annotated(
    images: Iterable[Member], text: Callable[[str], str], classes: list[str], path: Path
) -> list[SourceFile]:
    """The validation images in sample order, each in the class that its annotation says."""
    lines = (line.split("\t") for line in text("val/val_annotations.txt").splitlines() if line.strip())
    wnids = {line[0]: line[1] for line in lines if len(line) > 1}
    files = []
    for member in images:
        name = member.name.rpartition("/")[2]
        if wnids.get(name) not in classes:
            raise UserError(f"{path}: val/val_annotations.txt gives no class of wnids.txt to {name}; download it again")
        files.append(_file(f"{wnids[name]}/{name}", classes.index(wnids[name]), member))
    return sorted(files, key=lambda file: (file.label, os.fsencode(file.name)))


def _file(name: str, label: int, member: Member) -> SourceFile:
    return SourceFile(name, label, member.num_bytes, member.offset)

"""An ImageFolder tree as a source: SPLIT/CLASS/IMAGE under one folder. Called by prepare.

Also what every source is: `Source`, the lists of files in the order of their sample index, and their bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

from tencrop.config import Data, UserError

# torchvision's ImageFolder takes these
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class SourceFile(NamedTuple):
    name: str  # class/file
    label: int  # rank of the class among the sorted class names
    num_bytes: int


class Source(Protocol):
    """Where images come from; a file's rank in `files[split]`, sorted bytewise by class and name, is its index [1]."""

    path: str | None  # of the user's folder
    splits: dict[str, str]  # folder of each split within `path`
    classes: list[str]  # sorted bytewise
    files: dict[str, list[SourceFile]]  # by split: "train", "val"

    def read(self, split: str, name: str) -> bytes:
        """The encoded image."""
        ...


class FolderSource:
    """Class folders of images under the two folders named by `data.splits`.

    Images may lie deeper within a class folder, as in torchvision; files of other endings are not images.
    Raises UserError where a split is missing, a class folder holds no image, or the splits' classes differ.
    """

    def __init__(self, data: Data) -> None:
        if data.source is None:
            raise UserError(
                f"data.source: where are the images? Run: python prepare.py data={data.name}"
                f" data.source=FOLDER_OF_IMAGES data.root={data.root}"
            )
        if not Path(data.source).is_dir():
            raise UserError(f"data.source={data.source}: there is no such folder")
        self.path: str | None = str(Path(data.source).resolve())
        self.splits = {"train": data.splits.train, "val": data.splits.val}
        found = {split: _class_names(self.path, split, folder) for split, folder in self.splits.items()}
        _check_same_classes(found["train"], found["val"])
        self.classes = found["train"]
        if data.num_classes not in (None, len(self.classes)):
            raise UserError(
                f"data.num_classes={data.num_classes}: {data.source} has {len(self.classes)} class folders;"
                f" set data.num_classes={len(self.classes)}, or name another data.source"
            )
        self.files = {split: self._list_files(split) for split in self.splits}

    def read(self, split: str, name: str) -> bytes:
        assert self.path is not None
        return read_file(Path(self.path) / self.splits[split] / name)

    def _list_files(self, split: str) -> list[SourceFile]:
        assert self.path is not None
        folder = Path(self.path) / self.splits[split]
        files = []
        for label, name in enumerate(self.classes):
            images = sorted(_images(folder / name), key=lambda image: os.fsencode(image[0]))
            if not images:
                raise UserError(
                    f"{folder / name}: the class folder holds no image ({' '.join(EXTENSIONS)});"
                    " add images or remove the folder from every split"
                )
            files += [SourceFile(f"{name}/{image}", label, num_bytes) for image, num_bytes in images]
        return files


def read_file(path: Path) -> bytes:
    """The bytes of an original file; UserError where it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: the original file is gone; put it back, or name data.source where it lies") from error


def _class_names(source: str, split: str, folder: str) -> list[str]:
    path = Path(source) / folder
    names = _subfolders(path) if path.is_dir() else []
    if names:
        return names
    here = ", ".join(_subfolders(Path(source))[:5]) or "no folders"
    reason = "holds no class folders" if path.is_dir() else "is not there"
    raise UserError(
        f"data.splits.{split}={folder}: {path} {reason} ({source} holds {here}); name the folder of the {split}"
        f" split's class folders with data.splits.{split}=FOLDER (. is data.source itself)"
    )


def _subfolders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=os.fsencode)


def _images(folder: Path) -> list[tuple[str, int]]:
    """(path within the class folder, bytes) of the images in it, in no order."""
    images = []
    pending = [""]
    while pending:
        inner = pending.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append(f"{inner}{entry.name}/")
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append((inner + entry.name, entry.stat().st_size))
    return images


def _check_same_classes(train: list[str], val: list[str]) -> None:
    for names, others, split, other in ((train, val, "train", "val"), (val, train, "val", "train")):
        if missing := sorted(set(names) - set(others), key=os.fsencode):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"data.source: class folder {missing[0]}{more} of the {split} split has no counterpart in {other};"
                " both splits need the same class folders"
            )

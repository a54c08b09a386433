"""An ImageFolder tree as a source: SPLIT/CLASS/IMAGE under one folder. Called by prepare; ilsvrc lists with it."""

from __future__ import annotations

import os
from pathlib import Path

from tencrop.config import Data, UserError
from tencrop.data.originals import TREE, Place, SourceFile, read_original

# torchvision's ImageFolder takes these
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FolderSource:
    """Class folders of images under the two folders named by `data.splits`.

    Images may lie deeper within a class folder, as in torchvision; files of other endings are not images.
    Raises UserError where a split is missing, a class folder holds no image, or the splits' classes differ.
    """

    def __init__(self, data: Data) -> None:
        path = source_folder(data)
        splits = {"train": data.splits.train, "val": data.splits.val}
        self.place = Place(str(path), splits, dict.fromkeys(splits, TREE))
        found = {split: class_folders(path, split, folder) for split, folder in splits.items()}
        check_same_classes(found["train"], found["val"])
        self.classes = found["train"]
        check_num_classes(data, self.classes)
        self.files = {split: list_images(path / folder, self.classes) for split, folder in splits.items()}

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.place, split, file)

    def published_md5(self) -> dict[str, str]:
        return {}


def source_folder(data: Data) -> Path:
    """`data.source` as an absolute path; UserError where it is not given or no folder."""
    if data.source is None:
        raise UserError(
            f"data.source: where are the images? Run: python prepare.py data={data.name}"
            f" data.source=FOLDER_OF_IMAGES data.root={data.root}"
        )
    if not Path(data.source).is_dir():
        raise UserError(f"data.source={data.source}: there is no such folder")
    return Path(data.source).resolve()


def class_folders(source: Path, split: str, folder: str) -> list[str]:
    """The class folders of a split, sorted bytewise; UserError where there are none."""
    path = source / folder
    names = subfolders(path) if path.is_dir() else []
    if names:
        return names
    here = ", ".join(subfolders(source)[:5]) or "no folders"
    reason = "holds no class folders" if path.is_dir() else "is not there"
    raise UserError(
        f"data.splits.{split}={folder}: {path} {reason} ({source} holds {here}); name the folder of the {split}"
        f" split's class folders with data.splits.{split}=FOLDER (. is data.source itself)"
    )


def list_images(folder: Path, classes: list[str]) -> list[SourceFile]:
    """The images of the class folders in sample order; UserError for a class without any."""
    files = []
    for label, name in enumerate(classes):
        images = sorted(_images(folder / name), key=lambda image: os.fsencode(image[0]))
        if not images:
            raise UserError(
                f"{folder / name}: the class folder holds no image ({' '.join(EXTENSIONS)});"
                " add images or remove the folder from every split"
            )
        files += [SourceFile(f"{name}/{image}", label, num_bytes) for image, num_bytes in images]
    return files


def subfolders(path: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted bytewise."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=os.fsencode)


def check_same_classes(train: list[str], val: list[str]) -> None:
    """UserError unless both splits have the same classes."""
    for names, others, split, other in ((train, val, "train", "val"), (val, train, "val", "train")):
        if missing := sorted(set(names) - set(others), key=os.fsencode):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"data.source: class folder {missing[0]}{more} of the {split} split has no counterpart in {other};"
                " both splits need the same class folders"
            )


def check_num_classes(data: Data, classes: list[str]) -> None:
    """UserError where `data.num_classes` says another number."""
    if data.num_classes not in (None, len(classes)):
        raise UserError(
            f"data.num_classes={data.num_classes}: {data.source} has {len(classes)} class folders;"
            f" set data.num_classes={len(classes)}, or name another data.source"
        )


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

"""A tree of class folders as a source, as in torchvision's ImageFolder: SPLIT/CLASS/IMAGE under one folder."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from pathlib import Path

from tencrop.cli.command_line import command_prefix, typed_word
from tencrop.config import Data, UserError
from tencrop.data.sources.source import TREE, SourceFile, SourceLocation, read_original

# The extensions that torchvision's ImageFolder accepts
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ENDING = re.compile(r"\.[a-z][a-z0-9]{0,7}")  # a file extension, but not the .0001 of a numbered name
# Folders that file servers and desktops create (thumbnails, deleted files), in lower case
SYSTEM_FOLDERS = {
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
}
# Files of Hugging Face's ImageNet and other parquet data sets
SHARDS = (
    "*.parquet",
    "data/*.parquet",
    "*.arrow",
    "data/*.arrow",
    "train_images_*.tar.gz",
    "data/train_images_*.tar.gz",
)


class FolderSource:
    """Class folders of images under the two folders named by `data.splits`.

    Images may be in subfolders of a class folder, as in torchvision. Hidden files, system folders and files with other
    extensions are not images; `left_out` counts them.
    Raises UserError if a split is missing, a class folder has no image, or the splits have different classes; with
    `data.subset`, val may lack classes of train.
    """

    def __init__(self, data: Data) -> None:
        # All class folders are listed, and compared between the splits, before any of their images.
        path = source_folder(data)
        splits = {"train": data.splits.train, "val": data.splits.val}
        self.location = SourceLocation(str(path), splits, dict.fromkeys(splits, TREE))
        found = {split: class_folders(path, split, folder) for split, folder in splits.items()}
        self.classes = found["train"]
        check_same_classes(self.classes, found["val"], subset=data.subset)
        check_num_classes(data, self.classes)
        self.left_out: dict[str, Counter[str]] = {split: Counter() for split in splits}
        self.files = {
            split: list_images(path / folder, found[split], self.left_out[split]) for split, folder in splits.items()
        }
        # list_images numbers the classes of val among themselves. In a subset val lacks some, so the labels are looked
        # up.
        labels = {name: label for label, name in enumerate(self.classes)}
        self.files["val"] = [file._replace(label=labels[file.name.partition("/")[0]]) for file in self.files["val"]]

    def read(self, split: str, file: SourceFile) -> bytes:
        return read_original(self.location, split, file)

    def published_md5(self) -> dict[str, str]:
        return {}


def source_folder(data: Data) -> Path:
    """`data.source` as an absolute path; UserError if it is not set or not a folder."""
    if data.source is None:
        raise UserError(
            f"data.source: where are the images? Run: {command_prefix('prepare')} data={data.name}"
            f" data.source=FOLDER_OF_IMAGES {typed_word('data.root', data.root)}"
        )
    if not Path(data.source).is_dir():
        raise UserError(f"data.source={data.source}: there is no such folder; set data.source to the images' folder")
    return Path(data.source).resolve()


def class_folders(source: Path, split: str, folder: str) -> list[str]:
    """The class folders of a split, sorted bytewise; UserError if there are none."""
    path = source / folder
    names = subfolders(path) if path.is_dir() else []
    if names:
        return names
    # What is there shows a wrong level at once: data.source is often one folder too high or too low.
    here = ", ".join(subfolders(source)[:5]) or "no folders"
    reason = "has no class folders" if path.is_dir() else "does not exist"
    check_no_shards(source)
    raise UserError(
        f"data.splits.{split}={folder}: {path} {reason} ({source} has {here}); set data.splits.{split}=FOLDER to the"
        f" folder of the {split} split's class folders (. is data.source itself)"
    )


def check_no_shards(source: Path) -> None:
    """Raise UserError if the folder has only Hugging Face's shards, whose images their library must extract first."""
    # Hugging Face's repositories keep their shards in data/.
    if set(subfolders(source)) - {"data"}:
        return  # there are also folders of images
    if shard := next((path for pattern in SHARDS for path in source.glob(pattern)), None):
        raise UserError(
            f"{shard}: Hugging Face's layout (parquet, Arrow or tar.gz shards) is not read; write its images into class"
            " folders, train/CLASS/ and val/CLASS/, or name the folder of the published archives as data.source"
        )


def list_images(folder: Path, classes: list[str], left_out: Counter[str]) -> list[SourceFile]:
    """The images of the class folders in sample order; UserError for a class without images.

    Counts all other files in `left_out`.
    """
    files = []
    left_out.update(_beside(folder, set(classes)))
    for label, name in enumerate(classes):
        # Counted apart, because the message for a class without images names what its folder has instead.
        others: Counter[str] = Counter()
        # By bytes, as in every source: independent of the locale, and defined for names that are not valid UTF-8.
        images = sorted(_images(folder / name, others), key=lambda image: os.fsencode(image[0]))
        if not images:
            raise UserError(
                f"{folder / name}: the class folder has no image ({' '.join(EXTENSIONS)})"
                + (f", but {format_counts(others)}" if others else "")
                + "; add images or remove the folder from every split"
            )
        left_out.update(others)
        files += [SourceFile(f"{name}/{image}", label, num_bytes) for image, num_bytes in images]
    return files


def subfolders(path: Path) -> list[str]:
    """Names of the subfolders, sorted bytewise, without hidden and system folders."""
    # os.scandir knows the type of an entry without a stat call, unlike os.listdir.
    with os.scandir(path) as entries:
        # A link to a folder counts as one: ImageNet is often a folder of links to a read-only copy.
        names = [entry.name for entry in entries if entry.is_dir() and not _is_system_folder(entry.name)]
    return sorted(names, key=os.fsencode)


def size_of_file(entry: os.DirEntry[str]) -> int:
    """Bytes of a file, or of the one that a link leads to.

    UserError for a pipe, a socket or a device: reading one would wait, or never end.
    """
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{entry.path}: is no plain file (but a folder, pipe, socket or device); remove it")
    return status.st_size


def kind_of(name: str) -> str:
    """The kind under which a file that is left out is counted: hidden, its extension, or without an ending."""
    if name.startswith("."):
        return "hidden"
    ending = os.path.splitext(name)[1].lower()
    return ending if ENDING.fullmatch(ending) else "without an ending"


def format_counts(left_out: Counter[str], most: int = 8) -> str:
    """Text such as "3 .jfif, 1 hidden", the most frequent first."""
    # The name breaks ties: the text is printed, and should not depend on the order of the file system.
    ordered = sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    texts = [f"{number:,} {sort}" for sort, number in ordered[:most]]
    if len(ordered) > most:
        texts.append(f"{sum(number for _, number in ordered[most:]):,} of {len(ordered) - most} other endings")
    return ", ".join(texts)


def check_same_classes(train: list[str], val: list[str], *, subset: bool) -> None:
    """Raise UserError unless both splits have the same classes; in a `subset`, val may lack classes of train."""
    # never the reverse: the labels are the ranks among the classes of train
    for names, others, split, other in ((train, val, "train", "val"), (val, train, "val", "train")):
        if (split == "val" or not subset) and (missing := sorted(set(names) - set(others), key=os.fsencode)):
            _check_accents(missing, set(others) - set(names), split, other)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"data.source: class folder {missing[0]}{more} of the {split} split has no counterpart in {other};"
                " both splits need the same class folders"
                + (", or set data.subset=true to evaluate those that val has" if split == "train" else "")
            )


def _check_accents(missing: list[str], others: set[str], split: str, other: str) -> None:
    """Raise UserError if a name differs from one of the other split only in its Unicode normalization (NFC, NFD).

    The two look the same in print: macOS stores an accent as a separate character, Linux usually does not.
    """
    # Without this the user would see two equal names and the claim that they differ.
    composed = {unicodedata.normalize("NFC", name): name for name in others}
    for name in missing:
        if twin := composed.get(unicodedata.normalize("NFC", name)):
            raise UserError(
                f"data.source: class folder {name} of the {split} split looks like {twin} of {other}, but its accents"
                f" are encoded differently (NFC, NFD); in the {other} folder type:"
                f" mv {_in_bytes(twin)} {_in_bytes(name)}"
            )


def _in_bytes(name: str) -> str:
    """The name quoted for bash with all non-ASCII bytes escaped, so that names that look the same differ."""
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(name))
    return f"$'{''.join(shown)}'"


def check_num_classes(data: Data, classes: list[str]) -> None:
    """Raise UserError if `data.num_classes` is set to another number."""
    if data.num_classes not in (None, len(classes)):
        raise UserError(
            f"data.num_classes={data.num_classes}: {data.source} has {len(classes)} class folders;"
            f" set data.num_classes={len(classes)}, or name another data.source"
        )


def _is_system_folder(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS


def _beside(folder: Path, classes: set[str]) -> Counter[str]:
    """Count the entries of a split's folder that are not class folders; a folder counts once."""
    with os.scandir(folder) as entries:
        return Counter(_kind_of_entry(entry) for entry in entries if entry.name not in classes)


def _kind_of_entry(entry: os.DirEntry[str]) -> str:
    if not entry.is_dir() or entry.name.startswith("."):
        return kind_of(entry.name)
    return entry.name if _is_system_folder(entry.name) else "other folders"


def _images(folder: Path, left_out: Counter[str]) -> list[tuple[str, int]]:
    """(path within the class folder, bytes) of its images, in any order; counts all other files."""
    images = []
    # A stack instead of Path.rglob: scandir knows the type of an entry without a stat call.
    pending = [""]  # subfolders still to list, relative to the class folder
    while pending:
        inner = pending.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir():
                    images.append((inner + entry.name, size_of_file(entry)))
                elif entry.is_dir() and not _is_system_folder(entry.name):
                    pending.append(f"{inner}{entry.name}/")
                else:
                    left_out[_kind_of_entry(entry)] += 1
    return images

"""Kaggle's layout of ImageNet: finds its folders, its archive and the classes of the validation images.

    ILSVRC/Data/CLS-LOC/train/WNID/WNID_NUMBER.JPEG
    ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG   to 00050000, without class folders
    LOC_val_solution.csv                                   a line for each image: its name, WNID and box of each object

All of that is in imagenet-object-localization-challenge.zip, which may be extracted or not. There is no devkit.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from tencrop.config import UserError
from tencrop.data.sources.archives import Member, zip_members
from tencrop.data.sources.labels import VAL_IMAGE, GroundTruth
from tencrop.data.sources.source import ZIP, SourceFile, SourceLocation, read_file, read_original

ARCHIVE = "imagenet-object-localization-challenge.zip"
SOLUTION = "LOC_val_solution.csv"
IMAGES = "ILSVRC/Data/CLS-LOC"  # has the folders train and val
# image-net.org's archives of the same layout, which lack the list of classes
COMPRESSED = ("imagenet_object_localization_patched2019.tar.gz", "ILSVRC2017_CLS-LOC.tar.gz")


class Archived(NamedTuple):
    """The images in Kaggle's zip, with names starting at SPLIT/, and the member with the list of classes."""

    images: dict[str, list[Member]]  # by split
    solution: Member | None


def folder_within(source: Path, folder: str) -> str:
    """A split's folder, relative to the user's folder: `folder` itself, or where Kaggle's layout has it."""
    # data.source may be the folder that contains ILSVRC, or ILSVRC itself.
    candidates = (folder, f"{IMAGES}/{folder}", f"{IMAGES.partition('/')[2]}/{folder}")
    return next((candidate for candidate in candidates if (source / candidate).is_dir()), folder)


def find_solution(source: Path) -> Path | None:
    """LOC_val_solution.csv in the user's folder, or above it if that is ILSVRC or ILSVRC/Data/CLS-LOC."""
    above = [source]  # folders that may contain the file
    for inner in ("ILSVRC", IMAGES):
        parts = Path(inner).parts
        if source.parts[-len(parts) :] == parts:
            above.append(source.parents[len(parts) - 1])
    return next((folder / SOLUTION for folder in above if (folder / SOLUTION).is_file()), None)


def find_ground_truth(source: Path, archive: Archived | None) -> GroundTruth | None:
    """The classes of the validation images: from the file beside the images, or else from the archive."""
    if path := find_solution(source):
        return read_solution(read_file(path), str(path))
    if archive is None or archive.solution is None:
        return None
    member = archive.solution
    location = SourceLocation(str(source), {"text": ARCHIVE}, {"text": ZIP})
    content = read_original(location, "text", SourceFile(member.name, 0, member.num_bytes, member.offset))
    return read_solution(content, f"{source / ARCHIVE}, {member.name}")


def read_solution(content: bytes, name: str) -> GroundTruth:
    """The classes of the validation images, from the content of LOC_val_solution.csv; UserError if it is damaged."""
    wnids: dict[int, str] = {}
    rows = csv.reader(content.decode("utf-8-sig", errors="replace").splitlines())
    for line, row in enumerate(rows, start=1):
        if not row or row[0] == "ImageId":
            continue
        # Every object of an image has a box of its own; all must be of one class.
        matched, objects = VAL_IMAGE.fullmatch(row[0]), row[1].split() if len(row) == 2 else []
        if not matched or not objects or wnids.setdefault(int(matched[1]), objects[0]) != objects[0]:
            raise UserError(f"{name}, line {line}: not a validation image and its one class; download it again")
    return GroundTruth(name, wnids)


def read_archive(path: Path) -> Archived:
    """Index Kaggle's zip, without its boxes and test images; UserError if it has no images."""
    images: dict[str, list[Member]] = {"train": [], "val": []}
    solution = None
    for member in zip_members(path):
        _, found, inner = member.name.rpartition(f"{IMAGES}/")
        split = inner.partition("/")[0]
        # rpartition: a zip that was made again may have further folders above ILSVRC.
        if found and split in images:
            images[split].append(member._replace(name=inner))
        elif member.name.rpartition("/")[2] == SOLUTION and not member.name.startswith("__MACOSX/"):
            solution = member
    if missing := [split for split, members in images.items() if not members]:
        raise UserError(f"{path}: has no file in {IMAGES}/{missing[0]}; download it again")
    return Archived(images, solution)


def check_not_compressed(source: Path) -> None:
    """Raise UserError if the files are in a tar.gz: a compressed tar can only be read from its beginning."""
    if path := next((source / name for name in COMPRESSED if (source / name).is_file()), None):
        raise UserError(
            f"{path}: cannot be read in place; extract it there, and put Kaggle's {SOLUTION} or"
            " ILSVRC2012_devkit_t12.tar.gz beside it: they have the classes of the validation images"
        )

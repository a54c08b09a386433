"""Cross-checks the classes of ImageNet's images among devkit, Kaggle's list, file names and folders.

If two of them contradict each other, the data are refused: there is no way to know which one is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tencrop.config import UserError
from tencrop.data.sources.source import SourceFile

VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")  # the beginning of a validation image's name
TRAIN_IMAGE = re.compile(r"(n\d{8})_")  # the beginning of a training image's name
WNID = re.compile(r"n\d{8}")


class GroundTruth(NamedTuple):
    """The classes of the validation images."""

    stated_by: str  # for error messages: the devkit, or a path
    wnids: dict[int, str]  # by the number in the image's name, which counts from 1

    def of_image(self, name: str) -> str | None:
        """The class of the image with this file name; None if the name is not one of ILSVRC2012's."""
        matched = VAL_IMAGE.match(name)
        return self.wnids.get(int(matched[1]), "none of its classes") if matched else None


def class_in_name(name: str) -> str | None:
    """The WNID at the beginning of the name of an ImageNet training image; None for other names."""
    matched = TRAIN_IMAGE.match(name)
    return matched[1] if matched else None


def check_names(location: Path, files: Iterable[SourceFile]) -> None:
    """Raise UserError if an image is in the folder of one WNID and its name begins with another."""
    of_wnids = (file for file in files if WNID.fullmatch(file.name.partition("/")[0]))
    check_folders(location, of_wnids, class_in_name, stated_by="its name")


def check_folders(
    location: Path, files: Iterable[SourceFile], class_of: Callable[[str], str | None], *, stated_by: str
) -> None:
    """Raise UserError if `class_of` an image's file name is not its folder's class; None is not compared."""
    # Collect all of them: one contradiction is a stray file, thousands are another class order.
    wrong = []
    for file in files:
        folder, name = file.name.partition("/")[0], file.name.rpartition("/")[2]
        if (stated := class_of(name)) not in (None, folder):
            wrong.append((file.name, folder, stated))
    if wrong:
        name, folder, stated = wrong[0]
        more = f" ({len(wrong) - 1:,} more images contradict)" if len(wrong) > 1 else ""
        raise UserError(
            f"{location / name}: is in the folder of {folder}, but {stated_by} says {stated}{more};"
            " sort the images into their folders again, or use data=imagefolder if other classes are intended"
        )


def check_same_truth(first: GroundTruth, second: GroundTruth) -> None:
    """Raise UserError if the two give a validation image different classes."""
    for number in sorted(first.wnids.keys() & second.wnids.keys()):
        if first.wnids[number] != second.wnids[number]:
            raise UserError(
                f"{second.stated_by}: says that ILSVRC2012_val_{number:08d} is of {second.wnids[number]}, but"
                f" {first.stated_by} says {first.wnids[number]}; remove the one that is not ILSVRC2012's"
            )

"""The classes of ImageNet's images from more than one place, compared: devkit, Kaggle's list, file names, folders.

Called by ilsvrc and tiny_imagenet. Where two places say different things, neither is believed: the data are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tencrop.config import UserError
from tencrop.data.sources.source import SourceFile

VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")  # how the name of a validation image begins
TRAIN_IMAGE = re.compile(r"(n\d{8})_")  # of a training image
WNID = re.compile(r"n\d{8}")


class GroundTruth(NamedTuple):
    """The classes of the validation images."""

    said_by: str
    wnids: dict[int, str]  # by the number in the image's name, which counts from 1

    def of_image(self, name: str) -> str | None:
        """What is said of the image of this file name; None where the name is not one of ILSVRC2012's."""
        matched = VAL_IMAGE.match(name)
        return self.wnids.get(int(matched[1]), "none of its classes") if matched else None


def class_in_name(name: str) -> str | None:
    """The WNID with which ImageNet's training images are named; None for other names."""
    matched = TRAIN_IMAGE.match(name)
    return matched[1] if matched else None


def check_names(place: Path, files: Iterable[SourceFile]) -> None:
    """UserError where an image lies in the folder of one WNID and its name begins with another."""
    of_wnids = (file for file in files if WNID.fullmatch(file.name.partition("/")[0]))
    check_folders(place, of_wnids, class_in_name, said_by="its name")


def check_folders(
    place: Path, files: Iterable[SourceFile], class_of: Callable[[str], str | None], *, said_by: str
) -> None:
    """UserError where `class_of` an image's file name is another class than its folder; None says nothing."""
    wrong = []
    for file in files:
        folder, name = file.name.partition("/")[0], file.name.rpartition("/")[2]
        if (said := class_of(name)) not in (None, folder):
            wrong.append((file.name, folder, said))
    if wrong:
        name, folder, said = wrong[0]
        more = f" ({len(wrong) - 1:,} more images contradict)" if len(wrong) > 1 else ""
        raise UserError(
            f"{place / name}: lies in the folder of {folder}, and {said_by} says {said}{more};"
            " sort the images into their folders again, or use data=imagefolder if other classes are meant"
        )


def check_same_truth(first: GroundTruth, second: GroundTruth) -> None:
    """UserError where both know a validation image and say different classes."""
    for number in sorted(first.wnids.keys() & second.wnids.keys()):
        if first.wnids[number] != second.wnids[number]:
            raise UserError(
                f"{second.said_by}: says that ILSVRC2012_val_{number:08d} is of {second.wnids[number]}, and"
                f" {first.said_by} says {first.wnids[number]}; remove the one that is not ILSVRC2012's"
            )

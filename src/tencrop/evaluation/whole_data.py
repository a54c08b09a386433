"""The size of each complete data set: a printed error may only be compared with errors on all images and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tencrop.data.sources import cifar10, digits, ilsvrc, mnist, tiny_imagenet

# Dataset -> (training images, evaluation images, classes).
WHOLE_DATA = {
    "imagenet": (*ilsvrc.NUM_IMAGES.values(), 1000),
    "cifar10": (*(len(files) * cifar10.IMAGES_OF_A_BATCH for files in cifar10.BATCHES.values()), 10),
    "mnist": (*mnist.NUM_IMAGES.values(), 10),
    "tiny_imagenet": (*tiny_imagenet.NUM_IMAGES.values(), 200),
    "digits": (digits.NUM_TRAIN, digits.NUM_DIGITS - digits.NUM_TRAIN, 10),
}


def is_whole(name: str, data: Mapping[str, Any]) -> bool:
    """Whether a manifest has all images and classes of the dataset `name`; False for a dataset not in WHOLE_DATA."""
    try:
        found = tuple(data["splits"][split]["num_samples"] for split in ("train", "val"))
        return (*found, len(data["classes"])) == WHOLE_DATA.get(name)
    except (KeyError, TypeError):  # the manifest of another version
        return False


def is_on_whole(name: str, result: Mapping[str, Any]) -> bool:
    """Whether a result.json covers all evaluation images and classes of the dataset `name`."""
    counted = (result["num_images"], result.get("num_classes"))
    return result["data"] == name and counted == WHOLE_DATA[name][1:]

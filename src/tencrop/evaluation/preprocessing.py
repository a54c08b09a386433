"""Put the preprocessing that weights expect (mean, std, filter, crop, size) into a configuration.

Keys given on the command line take precedence. targets.py uses it for weights in a run folder, publishers.py for
weights of timm and torchvision. Imports no torch, so that a wrong command is refused at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from tencrop.config import Config, Normalization
from tencrop.config.schema import MEAN_IMAGES, Filter, PixelMean, PixelStd

# Field of the preprocessing -> configuration keys that override it on the command line.
KEYS = {
    "mean": ("normalization.mean", "normalization"),
    "std": ("normalization.std", "normalization"),
    "filter": ("protocol.filter", "augmentation.filter"),
    "size": ("protocol.size", "image_size"),
    "side": ("protocol.side", "short_side"),
}


class Preprocessing(NamedTuple):
    """How images must be preprocessed for some weights."""

    source: str  # where this is from, for the printed line and result.json
    mean: Literal["imagenet", "dataset", "image", "image_center"] | PixelMean
    std: Literal["imagenet", "dataset"] | PixelStd
    filter: Filter
    size: int | None  # side of the crop in pixels; None: keep size and side of the configuration
    side: Callable[[int], int | None]  # crop size -> shorter side that images are rescaled to


def typed_fields(typed: Collection[str]) -> set[str]:
    """Which of mean, std, filter, size and side the command line sets; typed: the keys given on it."""
    return {name for name, keys in KEYS.items() if any(key in typed for key in keys)}


def apply_preprocessing(config: Config, wanted: Preprocessing, typed: Collection[str]) -> Config:
    """`config` with the preprocessing `wanted`, except for keys that are typed on the command line.

    Sizes and filter go into the protocol. They also go into image_size, short_side and augmentation.filter, which are
    the defaults that a score file's name is compared with: only what the user changed appears in the name.
    """
    own, kept = config.protocol, typed_fields(typed)
    filter = own.filter if "filter" in kept else wanted.filter
    image_size, short_side, size, side = config.image_size, config.short_side, own.size, own.side
    if wanted.size is not None:
        image_size = image_size if "image_size" in typed else wanted.size
        short_side = short_side if "short_side" in typed else wanted.side(image_size)
        size = size if "size" in kept else image_size
        if "side" not in kept and own.name != "crops_144":  # its four sides are fixed by the paper
            side = wanted.side(size)
    return dataclasses.replace(
        config,
        image_size=image_size,
        short_side=short_side,
        augmentation=dataclasses.replace(config.augmentation, filter=filter),
        normalization=Normalization(
            mean=config.normalization.mean if "mean" in kept else wanted.mean,
            std=config.normalization.std if "std" in kept else wanted.std,
        ),
        protocol=dataclasses.replace(own, size=size, side=side, filter=filter),
    )


def changed_normalization(used: Mapping[str, Any], trained: Mapping[str, Any], typed: Collection[str]) -> list[str]:
    """Which of "mean" and "std" are not those of the training of the weights.

    used, trained: `mean` and `std` per channel, and perhaps `mean_image_sha256`. If the file of the weights does not
    have those of its training (`trained` is empty), the keys that the command line sets.
    """
    if not trained:
        return sorted(typed_fields(typed) & {"mean", "std"})
    # A checkpoint has them as float32.
    changed = {key for key in ("mean", "std") if not np.allclose(used[key], trained[key], rtol=1e-6, atol=0)}
    images = [values.get("mean_image_sha256") for values in (used, trained)]
    return sorted(changed | ({"mean"} if images[0] != images[1] else set()))


def preprocessing_line(label: str, config: Config, mean: list[float], std: list[float], source: str) -> str:
    """The preprocessing that is used, in one line for the terminal. mean, std: on [0, 255], one per channel."""
    numbers = [" ".join(f"{value:g}" for value in values) for values in (mean, std)]
    numbers[0] = str(config.normalization.mean) if config.normalization.mean in MEAN_IMAGES else numbers[0]
    protocol = config.protocol
    sizes = sizes_text(protocol.size, protocol.side, protocol.resize)
    return f"{label}: mean {numbers[0]}, std {numbers[1]}, {protocol.filter}, {sizes} ({source})"


def sizes_text(size: int, side: int | list[int] | None, resize: str) -> str:
    """The sizes of a protocol in words: "224 of 256 px", "224 of whole size" or "384 of 384 px, stretched"."""
    if resize == "central_fraction":
        return f"{size} of the central 87.5%, stretched"
    sides = side if isinstance(side, list) else [side]
    text = "whole size" if side is None else f"{', '.join(map(str, sides))} px"
    return f"{size} of {text}" + (", stretched" if resize == "warp" else "")

"""What weights want of their images, mean, std, filter, crop and size, put into a configuration; what is typed stays.

Called by members.py for weights in a run folder, by publishers.py for weights from elsewhere. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from tencrop.config import Config, Normalization

# under which keys each of these may be typed
KEYS = {
    "mean": ("normalization.mean", "normalization"),
    "std": ("normalization.std", "normalization"),
    "filter": ("protocol.filter", "augmentation.filter"),
    "size": ("protocol.size", "image_size"),
    "side": ("protocol.side", "short_side"),
}


class Preprocessing(NamedTuple):
    """How images are prepared for some weights."""

    source: str  # who says so
    mean: Any  # as in Normalization
    std: Any
    filter: str
    size: int | None  # pixels the network sees; None: what the configuration says, and the side, too
    side: Callable[[int], int | None]  # of the shorter side for a crop of that size


def typed_of(typed: Collection[str]) -> set[str]:
    """Which of mean, std, filter, size and side are typed, of the keys that are."""
    return {name for name, keys in KEYS.items() if any(key in typed for key in keys)}


def prepared_as(config: Config, wanted: Preprocessing, typed: Collection[str]) -> Config:
    """`config` with `wanted`, but for the keys that are typed.

    Sizes and filter go into the protocol and, as the usual ones of these weights, into the keys that a protocol reads,
    so that score files are named after what differs from them.
    """
    own, kept = config.protocol, typed_of(typed)
    filter = own.filter if "filter" in kept else wanted.filter
    image_size, short_side, size, side = config.image_size, config.short_side, own.size, own.side
    if wanted.size is not None:
        image_size = image_size if "image_size" in typed else wanted.size
        short_side = short_side if "short_side" in typed else wanted.side(image_size)
        size = size if "size" in kept else image_size
        if "side" not in kept and own.name != "crops_144":  # whose sides are its paper's
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


def preprocessing_line(label: str, config: Config, mean: list[float], std: list[float], source: str) -> str:
    """What is used, in one line."""
    numbers = [" ".join(f"{value:g}" for value in values) for values in (mean, std)]
    protocol = config.protocol
    side = "whole size" if protocol.side is None else f"{', '.join(map(str, protocol.sides))} px"
    return f"{label}: mean {numbers[0]}, std {numbers[1]}, {protocol.filter}, {protocol.size} of {side} ({source})"

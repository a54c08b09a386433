"""File names of saved scores: the protocol, and every setting that is not the recipe's. Called by evaluate.py."""

from __future__ import annotations

from collections.abc import Iterable

from tencrop.config import Config
from tencrop.evaluation.protocols import default_side

MAX_STEM = 200  # characters; file systems allow 255 bytes, and the suffixes take some


def file_stem(
    config: Config,
    kind: str = "raw",
    checkpoint: str = "last",
    *,
    precision: str | None = None,
    normalization: str | None = None,
    subset: str | None = None,
) -> str:
    """File name of the scores without suffix: the protocol, then every setting that differs from the recipe's default.

    The defaults are the recipe's own sizes and filter, the whole image rescaled by its shorter side, raw weights, the
    last checkpoint, a loader that decodes to Pillow's pixels, the training's precision, mean and std, and the whole
    split.

    precision: that of the weights' own configuration; None: the configuration's. normalization: a digest of mean and
    std if they are not the training's, else None. subset: a digest of the images, if they are not the whole split.
    """
    protocol = config.protocol
    sides = "-".join(str(side or "kept") for side in protocol.sides)
    parts = {
        protocol.name: True,
        protocol.region: protocol.region != "whole",
        protocol.resize: protocol.resize != "shorter_side",
        f"side{sides}": protocol.resize != "central_fraction"
        and protocol.side != default_side(protocol.name, config.short_side),
        f"size{protocol.size}": protocol.size != config.image_size,
        protocol.filter: protocol.filter != config.augmentation.filter,
        checkpoint: checkpoint != "last",
        kind: kind != "raw",
        "ffcv": config.data.loader == "ffcv",
        config.training.precision: precision not in (None, config.training.precision),
        f"normalization{normalization}": normalization is not None,
        f"subset{subset}": subset is not None,
    }
    return "-".join(part for part, differs in parts.items() if differs)


def joint_stem(stems: Iterable[str]) -> str:
    """File name of an ensemble's scores: the members' names, or "ensemble" if these are too long for a file system."""
    name = "+".join(sorted(set(stems)))
    return name if len(name) <= MAX_STEM else "ensemble"

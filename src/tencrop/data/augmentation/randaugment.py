"""RandAugment (Cubuk et al. 2020): which operations befall each image, and how strongly. Drawn on the host.

Called by `plan`; `operations` carries them out on the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tencrop.config import RandAugment
from tencrop.data.augmentation.operations import Operation as Op
from tencrop.data.sampling.rng import Float64, Index, Stream, normals, uniforms

# autoaugment.py's RandAugment._augmentation_space
TORCHVISION = (
    Op.IDENTITY, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, Op.BRIGHTNESS, Op.COLOR,
    Op.CONTRAST, Op.SHARPNESS, Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST, Op.EQUALIZE,
)  # fmt: skip
# auto_augment.py's _RAND_INCREASING_TRANSFORMS
TIMM = (
    Op.AUTOCONTRAST, Op.EQUALIZE, Op.INVERT, Op.ROTATE, Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD, Op.COLOR,
    Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y,
)  # fmt: skip
MAX_LEVEL = {"torchvision": 30.0, "timm": 10.0}
ENHANCEMENTS = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)


class Operations(NamedTuple):
    """What befalls each of B samples, one after the other."""

    operations: Index  # int64 [B, num_ops], of `Operation`
    values: Float64  # [B, num_ops], in the unit that `Operation` says


def randaugment_plan(key: dict[str, Any], randaugment: RandAugment, *, size: int) -> Operations:
    """Operations for images of size x size pixels; key: that of `uniforms`.

    torchvision: RandAugment(num_ops, magnitude, num_magnitude_bins=31) of torchvision 0.29: 14 operations, each as
        likely, one more of which may be the identity; magnitude is the bin, from 0 to 30.
    timm: rand-m<magnitude>-n<num_ops>-mstd<std>-p<prob>-inc1 of timm 1.0: 15 operations, each taken with `prob`; the
        level is normal about the magnitude with `std`, cut off to [0, 10]. (`inc1`: stronger with the level, all.)
    Both draw with replacement, and a sign for what has two directions. std and prob are timm's, 0 and 1 in
    torchvision's own recipe; the operations are Pillow's in both.
    """
    count = randaugment.num_ops
    kind, is_taken, sign = np.split(uniforms(**key, stream=Stream.RANDAUGMENT, count=3 * count), 3, axis=1)
    level = randaugment.magnitude + randaugment.std * normals(**key, stream=Stream.RANDAUGMENT_LEVEL, count=count)
    most = MAX_LEVEL[randaugment.source]
    level = np.clip(level, 0, most) / most
    names, values_of = {"torchvision": (TORCHVISION, torchvision_values), "timm": (TIMM, timm_values)}[
        randaugment.source
    ]
    chosen = (kind * len(names)).astype(np.int64)
    signs = np.where(sign < 0.5, -1.0, 1.0)
    values = values_of(level, signs, size=size)
    operations = np.array(names, np.int64)[chosen]
    value = np.select([operations == operation for operation in values], list(values.values()), 0.0)
    taken = is_taken < randaugment.prob
    return Operations(np.where(taken, operations, Op.IDENTITY), np.where(taken, value, 0.0))


def is_randaugmented(randaugment: RandAugment) -> bool:
    """Whether a recipe has RandAugment at all."""
    return randaugment.num_ops > 0


def torchvision_values(level: Float64, signs: Float64, *, size: int) -> dict[Op, Float64]:
    """The value of each operation that has one; level: [B, num_ops], the bin's share of 30; signs: of -1 and 1."""
    translation = -np.trunc(signs * 150 / 331 * size * level)  # whole pixels; its +1 moves the picture, not the window
    return {
        Op.SHEAR_X: signs * 0.3 * level,
        Op.SHEAR_Y: signs * 0.3 * level,
        Op.TRANSLATE_X: translation,
        Op.TRANSLATE_Y: translation,
        Op.ROTATE: signs * 30 * level,
        **dict.fromkeys(ENHANCEMENTS, 1 + signs * 0.9 * level),
        Op.POSTERIZE: 8 - np.rint(4 * level),
        Op.SOLARIZE: 255 * (1 - level),
    }


def timm_values(level: Float64, signs: Float64, *, size: int) -> dict[Op, Float64]:
    """As `torchvision_values`; level: the share of 10."""
    return {
        Op.SHEAR_X: signs * 0.3 * level,
        Op.SHEAR_Y: signs * 0.3 * level,
        Op.TRANSLATE_X: signs * 0.45 * size * level,
        Op.TRANSLATE_Y: signs * 0.45 * size * level,
        Op.ROTATE: signs * 30 * level,
        **dict.fromkeys(ENHANCEMENTS, np.maximum(0.1, 1 + signs * 0.9 * level)),
        Op.POSTERIZE: 4 - np.trunc(4 * level),
        Op.SOLARIZE: 256 - np.trunc(256 * level),
        Op.SOLARIZE_ADD: np.trunc(110 * level),
    }

"""RandAugment (Cubuk et al. 2020): draws operations and magnitudes for each image; `operations` implements them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tencrop.config import Augmentation, Config, RandAugment
from tencrop.data.augmentation.color import mean_and_std
from tencrop.data.augmentation.operations import Operation as Op
from tencrop.data.augmentation.operations import apply_operations
from tencrop.data.augmentation.operations_tf import apply_operations_tf
from tencrop.data.augmentation.transform import Params, Samples, Transform
from tencrop.data.sampling.rng import Float64, Index, Stream, integers_below, normals, random_uint64, uniforms

# RandAugment._augmentation_space of torchvision's autoaugment.py, in its order: a draw picks by position
TORCHVISION = (
    Op.IDENTITY, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, Op.BRIGHTNESS, Op.COLOR,
    Op.CONTRAST, Op.SHARPNESS, Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST, Op.EQUALIZE,
)  # fmt: skip
# _RAND_INCREASING_TRANSFORMS of timm's auto_augment.py, in its order
TIMM = (
    Op.AUTOCONTRAST, Op.EQUALIZE, Op.INVERT, Op.ROTATE, Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD, Op.COLOR,
    Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y,
)  # fmt: skip
# available_ops of distort_image_with_randaugment in EfficientNet's and big_vision's autoaugment.py, in its order
TF = (
    Op.AUTOCONTRAST, Op.EQUALIZE, Op.INVERT, Op.ROTATE, Op.POSTERIZE, Op.SOLARIZE, Op.COLOR, Op.CONTRAST,
    Op.BRIGHTNESS, Op.SHARPNESS, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.CUTOUT, Op.SOLARIZE_ADD,
)  # fmt: skip
MAX_LEVEL = {"torchvision": 30.0, "timm": 10.0, "tf": 10.0}  # so magnitude 9 is 0.3 of the range, or 0.9
ENHANCEMENTS = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)


class RandomOperations(Transform):
    """RandAugment: a few random operations on each image."""

    fill: Tensor

    @staticmethod
    def is_on(augmentation: Augmentation) -> bool:
        return augmentation.randaugment.num_ops > 0

    @staticmethod
    def draw(samples: Samples, augmentation: Augmentation) -> Params:
        """The fields of `Operations`; for TensorFlow's also cutout_centers, int64 [B, num_ops, 2], row and column."""
        operations, values = randaugment_plan(samples.key, augmentation.randaugment, size=augmentation.size)
        params: Params = {"operations": operations, "operation_values": values}
        if augmentation.randaugment.source == "tf":
            draw = random_uint64(**samples.key, stream=Stream.CUTOUT, count=2 * operations.shape[1])
            params["cutout_centers"] = integers_below(draw, augmentation.size).reshape(*operations.shape, 2)
        return params

    @staticmethod
    def neutral(num_samples: int) -> Params:
        values = np.zeros((num_samples, 0))
        return {"operations": values.astype(np.int64), "operation_values": values}

    def __init__(self, config: Config, statistics: dict[str, Any]):
        super().__init__(config, statistics)
        self.settings = config.augmentation.randaugment
        mean = torch.tensor(mean_and_std(config.normalization, statistics)[0])
        # Pixels that a rotation, shear or translation leaves uncovered: timm fills in the mean, torchvision black.
        fill = mean.round() if self.settings.source == "timm" else torch.zeros_like(mean)
        self.register_buffer("fill", fill, persistent=False)

    def forward(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        operations, values = params["operations"], params["operation_values"]
        if self.settings.source == "tf":
            return apply_operations_tf(images, operations, values, params["cutout_centers"])
        return apply_operations(images, operations, values, filter=self.settings.filter, fill=self.fill)


class Operations(NamedTuple):
    """Operations for each of B samples, applied from first to last."""

    operations: Index  # int64 [B, num_ops], members of `Operation`
    values: Float64  # [B, num_ops], in the unit that `Operation` defines


def randaugment_plan(key: dict[str, Any], randaugment: RandAugment, *, size: int) -> Operations:
    """Operations for images of size x size pixels; `key`: arguments of `uniforms`.

    torchvision: RandAugment(num_ops, magnitude, num_magnitude_bins=31) of torchvision 0.29: 14 equally likely
        operations, the identity among them; magnitude is the bin, 0 to 30.
    timm: rand-m<magnitude>-n<num_ops>-mstd<std>-p<prob>-inc1 of timm 1.0: 15 operations, each applied with probability
        `prob`; the level is normal around the magnitude with standard deviation `std`, clipped to [0, 10]. (`inc1`:
        every operation is stronger at a higher level.)
    tf: distort_image_with_randaugment(num_ops, magnitude) of EfficientNet's and big_vision's code: 16 operations, with
        their own pixels (operations_tf).
    All draw with replacement, and a random sign for operations with two directions. std and prob are timm's options,
    0 and 1 in the recipes of the others; the operations of torchvision and timm are Pillow's.
    """
    count = randaugment.num_ops
    kind, is_taken, sign = np.split(uniforms(**key, stream=Stream.RANDAUGMENT, count=3 * count), 3, axis=1)
    level = randaugment.magnitude + randaugment.std * normals(**key, stream=Stream.RANDAUGMENT_LEVEL, count=count)
    most = MAX_LEVEL[randaugment.source]
    level = np.clip(level, 0, most) / most  # from here on a share of the maximum, in both
    names, values_of = {
        "torchvision": (TORCHVISION, torchvision_values),
        "timm": (TIMM, timm_values),
        "tf": (TF, tf_values),
    }[randaugment.source]
    chosen = (kind * len(names)).astype(np.int64)
    signs = np.where(sign < 0.5, -1.0, 1.0)
    values = values_of(level, signs, size=size)
    operations = np.array(names, np.int64)[chosen]
    value = np.select([operations == operation for operation in values], list(values.values()), 0.0)
    taken = is_taken < randaugment.prob
    return Operations(np.where(taken, operations, Op.IDENTITY), np.where(taken, value, 0.0))


def torchvision_values(level: Float64, signs: Float64, *, size: int) -> dict[Op, Float64]:
    """Value of each operation that has one; level: [B, num_ops], on [0, 1]; signs: -1 or 1."""
    # 150 pixels at AutoAugment's image size, 331, scaled to ours; whole pixels. Negative, because torchvision's
    # positive translation moves the picture to the right: it is read further to the left.
    translation = -np.trunc(signs * 150 / 331 * size * level)
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
    """Like `torchvision_values`, with timm's ranges."""
    return {
        Op.SHEAR_X: signs * 0.3 * level,
        Op.SHEAR_Y: signs * 0.3 * level,
        Op.TRANSLATE_X: signs * 0.45 * size * level,
        Op.TRANSLATE_Y: signs * 0.45 * size * level,
        Op.ROTATE: signs * 30 * level,
        **dict.fromkeys(ENHANCEMENTS, np.maximum(0.1, 1 + signs * 0.9 * level)),  # never black, gray or flat
        Op.POSTERIZE: 4 - np.trunc(4 * level),
        Op.SOLARIZE: 256 - np.trunc(256 * level),
        Op.SOLARIZE_ADD: np.trunc(110 * level),
    }


def tf_values(level: Float64, signs: Float64, *, size: int) -> dict[Op, Float64]:
    """Like `torchvision_values`, with the ranges of TensorFlow's code, whose pixels do not grow with the image."""
    return {
        Op.SHEAR_X: signs * 0.3 * level,
        Op.SHEAR_Y: signs * 0.3 * level,
        Op.TRANSLATE_X: signs * 100 * level,
        Op.TRANSLATE_Y: signs * 100 * level,
        Op.ROTATE: signs * 30 * level,
        **dict.fromkeys(ENHANCEMENTS, 0.1 + 1.8 * level),  # at a low level nearly black, gray or flat
        # A shift of uint8 by 8 bits becomes one by 7 (tensorflow/core/kernels/cwise_ops.h), which leaves one bit.
        Op.POSTERIZE: np.maximum(np.trunc(4 * level), 1),
        # As uint8, in which TensorFlow compares: 256, the threshold at magnitude 10, is 0 and inverts the whole image
        # (https://github.com/google-research/big_vision/issues/110).
        Op.SOLARIZE: np.trunc(256 * level) % 256,
        Op.SOLARIZE_ADD: np.trunc(110 * level),
        Op.CUTOUT: np.trunc(40 * level),
    }

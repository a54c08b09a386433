"""Crops of the mean image that AlexNet and ZFNet subtract, at the positions of the images' own crops.

The mean image is the mean over the training images' central squares, each resized to 256 x 256. So a crop has a
position in the mean image only if it is taken from such a square; config/protocol_rules.py and recipe_rules.py refuse
all other crops. Called by plan.py, color.py, training/classifier.py and visualization/trained_model.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tencrop.config import Normalization, UserError
from tencrop.config.schema import MEAN_IMAGE_SIDE
from tencrop.data.augmentation.crops import square_crops
from tencrop.data.sampling.geometry import offset
from tencrop.data.sampling.rng import Index, Stream, integers_below, random_uint64


def mean_image_of(choice: Normalization, statistics: Mapping[str, Any]) -> Tensor | None:
    """The mean image [256, 256, 3] on [0, 255] if `normalization.mean` is "image", else None.

    statistics: `Split.statistics` of prepared data, or the metadata of a checkpoint. UserError if they have none.
    """
    if choice.mean != "image":
        return None
    if "mean_image" not in statistics:
        raise UserError(
            "normalization.mean=image: the checkpoint holds no mean image, because it was trained with another mean;"
            " leave normalization.mean out"
        )
    # The default dtype is that of the weights: float32, and float64 in some tests.
    return torch.as_tensor(statistics["mean_image"], dtype=torch.get_default_dtype())


def array_sha256(values: Tensor) -> str:
    """SHA-256 (hexadecimal) of the float32 bytes of a tensor on the CPU."""
    return hashlib.sha256(values.float().contiguous().numpy().tobytes()).hexdigest()


def mean_crop_params(key: dict[str, Any], *, size: int, flips: Any) -> Index:
    """Top and left of each training crop in the mean image, and whether it is mirrored (1 or 0): int64 [B, 3].

    These are the positions that `random_boxes` draws in the rescaled square, so they do not depend on the size of the
    stored image. key: seed, epoch and samples, as `random_uint64` takes them. flips: [B].
    """
    draw = random_uint64(**key, stream=Stream.CROP, count=3)
    params = integers_below(draw, MEAN_IMAGE_SIDE - size + 1)
    # Draw 0 is the shorter side, which is fixed here; draws 1 and 2 are top and left.
    params[:, :2], params[:, 2] = params[:, 1:], flips
    return params


def mean_crops(mean_image: Tensor, params: Tensor, *, size: int) -> Tensor:
    """Crops [B, 3, size, size] of the mean image [256, 256, 3] for `params` [B, 3] of `mean_crop_params`.

    The crop of a mirrored image is mirrored too: Caffe subtracts the mean before it mirrors (data_transformer.cpp).
    """
    crops = square_crops(mean_image.expand(len(params), -1, -1, -1), params[:, :2], size=size)
    return torch.where((params[:, 2] == 1)[:, None, None, None], crops.flip(2), crops).permute(0, 3, 1, 2)


def central_mean(mean_image: Tensor, *, size: int) -> Tensor:
    """The central crop [1, 3, size, size] of the mean image [256, 256, 3]."""
    # By the same function as the views of an image: rounded in another way, the two would be a pixel apart.
    start = offset(MEAN_IMAGE_SIDE, size)
    return mean_image[start : start + size, start : start + size].permute(2, 0, 1)[None]

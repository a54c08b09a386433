"""The mean image that AlexNet, ZFNet and ResNet subtract, and its parts for crops of the images.

The mean image is the mean over the training images' central squares, each resized to 256 x 256.

normalization.mean=image subtracts the part at the place of the crop. Only a crop of such a square has a place;
config/protocol_rules.py and recipe_rules.py refuse all others.

normalization.mean=image_center subtracts the center of the mean image from every crop, wherever that lies. The center
is the mean over the central crops of the test, such as 224 of 256 pixels, in the size of a training crop. The mean
image that He et al. released with their ResNets has the size of their crops, 224 x 224 (ResNet_mean.binaryproto;
convert.py of ry/tensorflow-resnet checks its shape). How they computed it is not published.

Called by plan.py, color.py, training, evaluation and visualization.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tencrop.config import Config, Normalization, UserError
from tencrop.config.schema import MEAN_IMAGE_SIDE, MEAN_IMAGES
from tencrop.data.augmentation.crops import square_crops
from tencrop.data.sampling.geometry import offset
from tencrop.data.sampling.rng import Index, Stream, integers_below, random_uint64

# Key of the statistics of trained weights: the normalization.mean that their mean_image is for. Prepared data has none:
# its mean image is the whole one, from which both values take their part.
USE = "mean_image_use"


def mean_image_of(config: Config, statistics: Mapping[str, Any], *, size: int) -> Tensor | None:
    """The image that config.normalization subtracts, [S, S, 3] on [0, 255]; None if it subtracts one mean per channel.

    statistics: `Split.statistics` of prepared data, or those of trained weights. size: S for image_center, if the
    statistics are of prepared data; trained weights carry the image that they were trained with, whatever the size that
    they are evaluated at. UserError if the statistics have no mean image, or not the one that is asked for.
    """
    choice = config.normalization
    if choice.mean not in MEAN_IMAGES:
        return None
    if "mean_image" not in statistics:
        raise UserError(
            f"normalization.mean={choice.mean}: the checkpoint holds no mean image, because it was trained with another"
            " mean; leave normalization.mean out"
        )
    image = torch.as_tensor(statistics["mean_image"], dtype=torch.get_default_dtype())
    if choice.mean == "image_center":
        return image if statistics.get(USE) == "image_center" else _center(image, config, size)
    if statistics.get(USE) == "image_center":
        raise UserError(
            "normalization.mean=image: the weights were trained with the center of a mean image alone; leave"
            " normalization.mean out"
        )
    return image


def mean_side(choice: Normalization, *, size: int) -> int | None:
    """Height and width of the image that `mean_image_of` returns for training crops; None if it returns None."""
    return {"image": MEAN_IMAGE_SIDE, "image_center": size}.get(str(choice.mean))


def array_sha256(values: Tensor) -> str:
    """SHA-256 (hexadecimal) of the float32 bytes of a tensor on the CPU."""
    return hashlib.sha256(values.float().contiguous().numpy().tobytes()).hexdigest()


def mean_crop_params(key: dict[str, Any], *, side: int, size: int, flips: Any) -> Index:
    """Top and left of each training crop in the mean image, and whether it is mirrored (1 or 0): int64 [B, 3].

    side: of the mean image. If it is that of the crops, all positions are (0, 0); else they are those that
    `random_boxes` draws in the rescaled square, so they do not depend on the size of the stored image. key: seed, epoch
    and samples, as `random_uint64` takes them. flips: [B].
    """
    draw = random_uint64(**key, stream=Stream.CROP, count=3)
    params = integers_below(draw, side - size + 1)
    # Draw 0 is the shorter side, which is fixed here; draws 1 and 2 are top and left.
    params[:, :2], params[:, 2] = params[:, 1:], flips
    return params


def mean_crops(mean_image: Tensor, params: Tensor, *, size: int) -> Tensor:
    """Crops [B, 3, size, size] of the mean image [S, S, 3] at `params` [B, 3] of `mean_crop_params`.

    The crop of a mirrored image is mirrored too: Caffe subtracts the mean before it mirrors (data_transformer.cpp).
    """
    crops = square_crops(mean_image.expand(len(params), -1, -1, -1), params[:, :2], size=size)
    return torch.where((params[:, 2] == 1)[:, None, None, None], crops.flip(2), crops).permute(0, 3, 1, 2)


def central_mean(mean_image: Tensor, choice: Normalization, *, size: int) -> Tensor:
    """The part [1, 3, size, size] of `mean_image_of`'s image [S, S, 3] that is subtracted from a central crop."""
    if choice.mean == "image_center":
        return resized_mean(mean_image, size, size)
    return _cut(mean_image, size).permute(2, 0, 1)[None]


def resized_mean(mean_image: Tensor, height: int, width: int) -> Tensor:
    """The mean image [S, S, 3] stretched to [1, 3, height, width], for views of another size than training's crops.

    Bilinear without antialiasing, as one of ResNet's authors does for his detector (ShaoqingRen/faster_rcnn,
    prep_im_for_blob.m).
    """
    image = mean_image.permute(2, 0, 1)[None]
    return image if image.shape[2:] == (height, width) else interpolate(image, (height, width), mode="bilinear")


def _center(mean_image: Tensor, config: Config, size: int) -> Tensor:
    """The part of the mean image that a central test crop has of an image, resized to [size, size, 3]."""
    side = len(mean_image)
    center = _cut(
        mean_image, side if config.short_side is None else round(side * config.image_size / config.short_side)
    )
    if len(center) == size:
        return center
    pixels = center.permute(2, 0, 1)[None]
    return interpolate(pixels, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).contiguous()


def _cut(mean_image: Tensor, size: int) -> Tensor:
    start = offset(len(mean_image), size)
    return mean_image[start : start + size, start : start + size]

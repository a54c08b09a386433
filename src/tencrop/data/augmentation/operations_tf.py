"""RandAugment's operations as TensorFlow computes them (autoaugment.py of EfficientNet and big_vision).

Its authors wrote Pillow's operations again. Gray levels, blurring and coordinates are rounded in another way, and the
contrast is a different operation. What is not here equals Pillow's, in `operations`.
"""

from __future__ import annotations

import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.data.augmentation.operations import (
    COLOR_OPERATIONS,
    MATRICES,
    Indices,
    Operation,
    apply_in_order,
    autocontrast,
    blend,
    matrices,
)
from tencrop.data.sampling.rng import Index

FILL = 128  # of pixels that are cut out or that a warped image does not cover
LUMA = (0.2989, 0.5870, 0.1140)  # of tf.image.rgb_to_grayscale


def apply_operations_tf(images: Tensor, operations: Index, values: npt.NDArray, centers: Index) -> Tensor:
    """Apply to each image of uint8 [B, H, W, 3] its own operations [B, N] with the values [B, N], first to last.

    centers: int64 [B, N, 2], row and column of the center of the square that CUTOUT fills.
    """

    def apply(kind: int, chosen: Tensor, indices: Indices) -> Tensor:
        amount = torch.from_numpy(values[indices]).to(images.device, non_blocking=True)
        if kind in MATRICES:
            return warp_nearest(chosen, operations[indices], amount)
        if kind == Operation.CUTOUT:
            return cutout(chosen, torch.from_numpy(centers[indices]).to(images.device, non_blocking=True), amount)
        return _color_operation(kind, chosen, amount[:, None, None, None])

    return apply_in_order(images, operations, apply)


def _color_operation(kind: int, images: Tensor, amount: Tensor) -> Tensor:
    if kind == Operation.COLOR:
        return blend(images, to_grayscale(images), amount)
    if kind == Operation.CONTRAST:
        # A bug of the code: it divides the number of pixels by 256 and takes this for the mean gray level.
        return blend(images, min(255, images.shape[1] * images.shape[2] // 256), amount)
    if kind == Operation.SHARPNESS:
        return blend(images, smooth(images), amount)
    if kind == Operation.AUTOCONTRAST:
        return autocontrast(images, torch.float32)
    return COLOR_OPERATIONS[kind](images, amount)


def warp_nearest(images: Tensor, kinds: Index, amount: Tensor) -> Tensor:
    """Warp images uint8 [b, H, W, 3] as ImageProjectiveTransform does: the nearest pixel, or FILL outside the image.

    kinds, amount: [b] as in `matrices`.

    Pixel centers are at integers, so that the first row and column stay in place in a shear.
    """
    num_images, height, width, _ = images.shape
    # A rotation is around ((W - 1) / 2, (H - 1) / 2): the center of the image where pixel centers are at integers.
    shape = torch.Size((num_images, height - 1, width - 1, 3))
    a, b, c, d, e, f = matrices(kinds, amount, shape)[:, :, None, None].unbind(1)
    columns = torch.arange(width, device=images.device, dtype=amount.dtype)
    rows = torch.arange(height, device=images.device, dtype=amount.dtype)[:, None]
    x, y = _rounded(a * columns + b * rows + c), _rounded(d * columns + e * rows + f)
    is_inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[..., None]
    image_starts = torch.arange(0, num_images * height * width, height * width, device=images.device)[:, None, None]
    samples = images.reshape(-1, 3)[image_starts + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)]
    return torch.where(is_inside, samples, FILL)


def _rounded(position: Tensor) -> Tensor:
    """Rounded as C's round does: halves away from zero, so that -0.5 lies outside the image."""
    exact = position.double()  # in float32, 0.49999997 + 0.5 is 1
    return torch.where(exact < 0, (exact - 0.5).ceil(), (exact + 0.5).floor()).long()


def cutout(images: Tensor, centers: Tensor, pad: Tensor) -> Tensor:
    """Fill the square of `pad` [b] pixels on each side of its center [b, 2]; the image's border cuts it."""

    def is_near(axis: int) -> Tensor:
        distance = torch.arange(images.shape[1 + axis], device=images.device) - centers[:, axis, None]
        return (distance >= -pad[:, None]) & (distance < pad[:, None])

    square = is_near(0)[:, :, None] & is_near(1)[:, None, :]
    return torch.where(square[..., None], FILL, images)


def to_grayscale(images: Tensor) -> Tensor:
    """tf.image.rgb_to_grayscale, float32 [b, H, W, 1]: a sum on [0, 1], times 255.5 and truncated."""
    red, green, blue = (images.float() * (1 / 255)).split(1, dim=-1)
    return ((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) * 255.5).clamp(0, 255).floor()


def smooth(images: Tensor) -> Tensor:
    """The mean over 3 x 3 pixels with weight 5 at the center, truncated, float32; edge pixels are unchanged."""
    # Added in float32, row by row: where the mean is a whole number, the order decides what it is truncated to.
    pixels = images.float()
    height, width = pixels.shape[1:3]
    result = pixels.clone()
    if min(height, width) > 2:
        total = torch.zeros_like(pixels[:, 1:-1, 1:-1])
        for row in range(3):
            for column in range(3):
                weight = (5 if row == column == 1 else 1) / 13
                total = total + weight * pixels[:, row : height - 2 + row, column : width - 2 + column]
        result[:, 1:-1, 1:-1] = total.clamp(0, 255).floor()
    return result

"""RandAugment's operations on the device, equal to Pillow's to the gray level.

Each operation runs only on the images that drew it. The host knows which those are, so nothing synchronizes with the
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.data.sampling.rng import Index

Indices = tuple[Index, int]  # rows and column of an array [B, N, ...] of parameters


class Operation(IntEnum):
    """An operation and the meaning of its value. Append only: plans hold the numbers."""

    IDENTITY = 0
    SHEAR_X = 1  # row y is read y * value pixels further to the right
    SHEAR_Y = 2  # column x is read x * value pixels further down
    TRANSLATE_X = 3  # the image is read `value` pixels further to the right
    TRANSLATE_Y = 4  # the image is read `value` pixels further down
    ROTATE = 5  # degrees, counter-clockwise, around the center
    BRIGHTNESS = 6  # blend factor of these four: 0 is black, gray, uniform or blurred; 1 is the image itself
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # number of bits to keep, 0 to 8
    SOLARIZE = 11  # threshold: gray levels from it on are inverted
    SOLARIZE_ADD = 12  # added to gray levels below 128
    AUTOCONTRAST = 13  # this and the following have no value
    EQUALIZE = 14
    INVERT = 15
    CUTOUT = 16  # half the side of the square in pixels; only TensorFlow's RandAugment has it (operations_tf)


def apply_operations(
    images: Tensor, operations: Index, values: npt.NDArray[np.float32], *, filter: str, fill: Tensor
) -> Tensor:
    """Apply to each image of uint8 [B, H, W, 3] its own operations [B, N] with the values [B, N], first to last.

    fill: [3], gray levels of pixels that a warped image does not cover, on the device of the images.
    filter: nearest | bilinear | bicubic, as in Pillow's Image.transform (whose bicubic has a = -1, unlike its resize).
    """

    def apply(kind: int, chosen: Tensor, indices: Indices) -> Tensor:
        amount = torch.from_numpy(values[indices]).to(images.device, non_blocking=True)
        if kind in MATRICES:
            return warp(chosen, matrices(operations[indices], amount, images.shape), filter=filter, fill=fill)
        return COLOR_OPERATIONS[kind](chosen, amount[:, None, None, None])

    return apply_in_order(images, operations, apply)


def apply_in_order(images: Tensor, operations: Index, apply: Callable[[int, Tensor, Indices], Tensor]) -> Tensor:
    """Replace images uint8 [B, H, W, 3] by `apply(kind, images that drew it, indices)`, for each column of
    `operations`.

    `indices` are the rows and the column of these images in `operations` [B, N]. All geometric operations are one call,
    whose kind is any of them, with images in the order of their kinds.
    """
    # At most N x 11 small batches instead of one kernel per image. Integer gathers and index_copy_ are deterministic
    # on CUDA, so equal plans give equal pixels. One warp of many images is for GPUs, which launch fewer kernels: a CPU,
    # whose caches are small, would be faster with one for each kind, but spends little of a step here.
    images = images.clone()
    for column, drawn in enumerate(operations.T):
        groups = np.where(np.isin(drawn, list(MATRICES)), Operation.SHEAR_X, drawn)
        order = np.argsort(drawn, kind="stable")
        for kind in np.unique(groups).tolist():
            if kind == Operation.IDENTITY:
                continue
            chosen = order[groups[order] == kind]
            rows = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            images.index_copy_(0, rows, apply(kind, images[rows], (chosen, column)))
    return images


# Geometric operations. An affine matrix (a, b, c, d, e, f), [b, 6], maps an output pixel to where it is read:
# x' = a x + b y + c, y' = d x + e y + f. This is Pillow's convention, the inverse of the image's own motion.


def affine_matrix(value: Tensor, *, entry: int) -> Tensor:
    """The identity matrix with one of its six entries replaced by `value`."""
    # Built on the device from `value`: torch.tensor of a Python list would be a synchronous copy.
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    columns = [one, zero, zero, zero, one, zero]
    columns[entry] = value
    return torch.stack(columns, dim=1)


def rotation_matrix(degrees: Tensor, shape: torch.Size) -> Tensor:
    """Rotation around the center of images [B, H, W, 3]."""
    angle = degrees * (-math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    y, x = shape[1] / 2, shape[2] / 2
    return torch.stack([cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y], dim=1)


MATRICES: dict[int, Callable[[Tensor, torch.Size], Tensor]] = {
    Operation.SHEAR_X: lambda value, _: affine_matrix(value, entry=1),
    Operation.TRANSLATE_X: lambda value, _: affine_matrix(value, entry=2),
    Operation.SHEAR_Y: lambda value, _: affine_matrix(value, entry=3),
    Operation.TRANSLATE_Y: lambda value, _: affine_matrix(value, entry=5),
    Operation.ROTATE: rotation_matrix,
}


def matrices(kinds: Index, values: Tensor, shape: torch.Size) -> Tensor:
    """Affine matrices [b, 6] of operations in ascending order [b] with the values [b], for images [B, H, W, 3]."""
    present, counts = np.unique(kinds, return_counts=True)
    parts = values.split(counts.tolist())
    return torch.cat([MATRICES[kind](part, shape) for kind, part in zip(present.tolist(), parts, strict=True)])


def warp(images: Tensor, matrix: Tensor, *, filter: str, fill: Tensor) -> Tensor:
    """Warp images uint8 [b, H, W, 3] by affine matrices [b, 6], by Pillow's rules (Geometry.c): pixel centers are at
    half-integers, a sample outside the image is `fill`, and neighbors of a sample beyond the edge repeat the edge.
    """
    # Not torch.nn.functional.grid_sample: its coordinates on [-1, 1] round differently, and pixels would differ from
    # Pillow's by a gray level here and there.
    _, height, width, _ = images.shape
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    columns = torch.arange(width, device=images.device) + 0.5
    rows = torch.arange(height, device=images.device)[:, None] + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    is_inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[..., None]
    flat = images.reshape(-1, 3)
    image_starts = torch.arange(0, len(flat), height * width, device=images.device)[:, None, None]

    def row_starts(row: Tensor) -> Tensor:
        return image_starts + row.clamp(0, height - 1) * width

    if filter == "nearest":
        samples = flat[row_starts(y.floor().long()) + x.floor().long().clamp(0, width - 1)]
    else:
        x, y = x - 0.5, y - 0.5
        left, top = x.floor(), y.floor()
        dx, dy = (x - left)[..., None], (y - top)[..., None]
        reach, interpolate = {"bilinear": (range(2), _linear), "bicubic": (range(-1, 3), _cubic)}[filter]
        first_column, first_row = left.long(), top.long()
        clamped = [(first_column + i).clamp(0, width - 1) for i in reach]
        starts = [row_starts(first_row + i) for i in reach]
        levels = flat.float()
        lines = [interpolate([levels[start + column] for column in clamped], dx) for start in starts]
        samples = interpolate(lines, dy).clamp(0, 255).to(torch.uint8)
    return torch.where(is_inside, samples, fill.to(torch.uint8))


def _linear(values: list[Tensor], d: Tensor) -> Tensor:
    return values[0] + (values[1] - values[0]) * d


def _cubic(values: list[Tensor], d: Tensor) -> Tensor:
    v1, v2, v3, v4 = values
    return v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 - v3 + v4)))


# Color operations: images uint8 [b, H, W, 3] and values [b, 1, 1, 1] -> uint8 [b, H, W, 3].


def blend(images: Tensor, other: Tensor | int, factor: Tensor) -> Tensor:
    """Image.blend of `other` and the images; the result is clipped to [0, 255] and truncated, not rounded."""
    return (other + factor * (images.float() - other)).clamp(0, 255).to(torch.uint8)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Contrast: blend with a uniform image of the rounded mean gray level."""
    # The mean is computed in integers: a float32 sum over 224 x 224 pixels is not exact, and the rounding would show.
    gray, num_pixels = to_grayscale(images), images.shape[1] * images.shape[2]
    mean = (2 * gray.sum((1, 2, 3), keepdim=True, dtype=torch.int64) + num_pixels) // (2 * num_pixels)
    return blend(images, mean.float(), factor)


def to_grayscale(images: Tensor) -> Tensor:
    """Pillow's conversion to mode L in 16-bit fixed point, int32 [b, H, W, 1]."""
    red, green, blue = images.to(torch.int32).split(1, dim=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def smooth(images: Tensor) -> Tensor:
    """ImageFilter.SMOOTH, int32: the mean over 3 x 3 pixels with weight 5 at the center; edge pixels are unchanged."""
    pixels = images.to(torch.int32)
    result = pixels.clone()
    if min(pixels.shape[1:3]) > 2:
        rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
        sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels[:, 1:-1, 1:-1]  # 13 weights in all
        result[:, 1:-1, 1:-1] = (2 * sums + 13) // 26
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    step = 2.0 ** (8 - bits)
    return (torch.floor(images / step) * step).to(torch.uint8)


def autocontrast(images: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """ImageOps.autocontrast. In float64, as in Pillow: it truncates, so the last bit of a level can decide."""
    counts = histograms(images)
    level = torch.arange(256, device=images.device, dtype=dtype)
    is_present = (counts > 0).to(torch.int32)
    low = is_present.argmax(-1, keepdim=True).to(dtype)
    high = 255 - is_present.flip(-1).argmax(-1, keepdim=True).to(dtype)
    span = torch.where(high > low, high - low, 1.0)
    scale = torch.full_like(span, 255.0) / span  # 255.0 / span with a Python number would be rounded twice
    return apply_lookup_table(images, torch.where(high > low, (level * scale + -low * scale).clamp(0, 255), level))


def equalize(images: Tensor) -> Tensor:
    """ImageOps.equalize, in integers as in Pillow."""
    counts = histograms(images)
    level = torch.arange(256, device=images.device)
    last = 255 - (counts > 0).to(torch.int32).flip(-1).argmax(-1, keepdim=True)
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, last)) // 255
    below = counts.cumsum(-1) - counts
    table = (step // 2 + below) // step.clamp(min=1)
    return apply_lookup_table(images, torch.where(step > 0, table.clamp(max=255), level))


def histograms(images: Tensor) -> Tensor:
    """Histogram of each channel, int64 [b, 3, 256] of uint8 [b, H, W, 3]."""
    # scatter_add_ of integers is exact in any order, so it is deterministic on CUDA; torch.histc works in floats.
    channel = torch.arange(3 * len(images), device=images.device).view(-1, 1, 1, 3)
    bins = (256 * channel + images).flatten()
    counts = torch.zeros(3 * len(images) * 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(0, bins, torch.ones_like(bins)).view(-1, 3, 256)


def apply_lookup_table(images: Tensor, table: Tensor) -> Tensor:
    """Replace each gray level of uint8 [b, H, W, 3] by its entry in the lookup table [b, 3, 256], truncated."""
    levels = images.reshape(len(images), -1, 3).long()
    return table.to(torch.uint8).transpose(1, 2).gather(1, levels).view_as(images)


COLOR_OPERATIONS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.BRIGHTNESS: lambda images, factor: blend(images, 0, factor),
    Operation.COLOR: lambda images, factor: blend(images, to_grayscale(images).float(), factor),
    Operation.CONTRAST: adjust_contrast,
    Operation.SHARPNESS: lambda images, factor: blend(images, smooth(images).float(), factor),
    Operation.POSTERIZE: posterize,
    Operation.SOLARIZE: lambda images, threshold: torch.where(images < threshold, images, 255 - images),
    Operation.SOLARIZE_ADD: lambda images, levels: torch.where(
        images < 128, (images + levels).clamp(max=255).to(torch.uint8), images
    ),
    Operation.AUTOCONTRAST: lambda images, _: autocontrast(images),
    Operation.EQUALIZE: lambda images, _: equalize(images),
    Operation.INVERT: lambda images, _: 255 - images,
}

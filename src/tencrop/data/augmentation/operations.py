"""RandAugment's operations on the device: Pillow's, to the gray level.

Called by `augment`. Which images an operation befalls is known on the host, so each is done to these alone, and
nothing waits for the device.
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


class Operation(IntEnum):
    """What may befall an image, and the meaning of its value. Append only: plans hold the numbers."""

    IDENTITY = 0
    SHEAR_X = 1  # row y is read y * value pixels further to the right
    SHEAR_Y = 2  # column x is read x * value pixels further down
    TRANSLATE_X = 3  # the image is read `value` pixels further to the right
    TRANSLATE_Y = 4  # ... further down
    ROTATE = 5  # degrees, counter-clockwise, about the center
    BRIGHTNESS = 6  # these four: 0 is black, gray, flat, blurred; 1 the image itself
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # bits that are kept, 0 to 8
    SOLARIZE = 11  # gray level from which on levels are inverted
    SOLARIZE_ADD = 12  # gray levels added to those below 128
    AUTOCONTRAST = 13  # without a value
    EQUALIZE = 14
    INVERT = 15


def apply_operations(
    images: Tensor, operations: Index, values: npt.NDArray[np.float32], *, filter: str, fill: Tensor
) -> Tensor:
    """Images uint8 [B, H, W, 3] after each image's own operations [B, N] of the values [B, N], first to last.

    fill: [3], gray levels where a moved image does not reach, on the device of the images.
    filter: nearest | bilinear | bicubic, Pillow's of that name in Image.transform (its bicubic there has a = -1).
    """
    images = images.clone()
    for operation, value in zip(operations.T, values.T, strict=True):
        for kind in np.unique(operation).tolist():
            if kind == Operation.IDENTITY:
                continue
            chosen = np.flatnonzero(operation == kind)
            amount = torch.from_numpy(value[chosen]).to(images.device, non_blocking=True)
            rows = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            if kind in PLACES:
                result = moved(images[rows], PLACES[kind](amount, images.shape), filter=filter, fill=fill)
            else:
                result = COLORS[kind](images[rows], amount[:, None, None, None])
            images.index_copy_(0, rows, result)
    return images


# Motions: where an output pixel is read, x' = a x + b y + c, y' = d x + e y + f, as rows (a, b, c, d, e, f), [b, 6].


def affine(value: Tensor, *, place: int) -> Tensor:
    """The identity but for one of the six. Filled on the device: a list of numbers would wait to be copied there."""
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    columns = [one, zero, zero, zero, one, zero]
    columns[place] = value
    return torch.stack(columns, dim=1)


def rotation(degrees: Tensor, shape: torch.Size) -> Tensor:
    """About the center of images [B, H, W, 3]."""
    angle = degrees * (-math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    y, x = shape[1] / 2, shape[2] / 2
    return torch.stack([cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y], dim=1)


PLACES: dict[int, Callable[[Tensor, torch.Size], Tensor]] = {
    Operation.SHEAR_X: lambda value, _: affine(value, place=1),
    Operation.TRANSLATE_X: lambda value, _: affine(value, place=2),
    Operation.SHEAR_Y: lambda value, _: affine(value, place=3),
    Operation.TRANSLATE_Y: lambda value, _: affine(value, place=5),
    Operation.ROTATE: rotation,
}


def moved(images: Tensor, matrix: Tensor, *, filter: str, fill: Tensor) -> Tensor:
    """Images uint8 [b, H, W, 3] read at the places of `matrix` [b, 6], by Pillow's rules (Geometry.c): a pixel's
    center lies at half numbers, what lies outside is `fill`, and a sample's neighbors beyond the edge are the edge.
    """
    num_images, height, width, _ = images.shape
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    columns = torch.arange(width, device=images.device) + 0.5
    rows = torch.arange(height, device=images.device)[:, None] + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    is_inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height))[..., None]
    flat = images.reshape(num_images, height * width, 3)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        return flat.gather(1, place.reshape(num_images, -1, 1).expand(-1, -1, 3)).view_as(images)

    if filter == "nearest":
        samples = pixels(y.floor().long(), x.floor().long())
    else:
        x, y = x - 0.5, y - 0.5
        left, top = x.floor(), y.floor()
        dx, dy = (x - left)[..., None], (y - top)[..., None]
        reach, interpolate = {"bilinear": (range(2), _linear), "bicubic": (range(-1, 3), _cubic)}[filter]
        column, row = left.long(), top.long()
        lines = [interpolate([pixels(row + i, column + j).float() for j in reach], dx) for i in reach]
        samples = interpolate(lines, dy).clamp(0, 255).to(torch.uint8)
    return torch.where(is_inside, samples, fill.to(torch.uint8))


def _linear(values: list[Tensor], d: Tensor) -> Tensor:
    return values[0] + (values[1] - values[0]) * d


def _cubic(values: list[Tensor], d: Tensor) -> Tensor:
    v1, v2, v3, v4 = values
    return v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 - v3 + v4)))


# Colors: images uint8 [b, H, W, 3] and values [b, 1, 1, 1] -> uint8 [b, H, W, 3].


def blended(images: Tensor, other: Tensor | int, factor: Tensor) -> Tensor:
    """Image.blend of `other` and the images: fractions are cut off, levels beyond black and white too."""
    return (other + factor * (images.float() - other)).clamp(0, 255).to(torch.uint8)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """The other image is flat, of the mean gray level rounded."""
    gray, num_pixels = grayed(images), images.shape[1] * images.shape[2]
    mean = (2 * gray.sum((1, 2, 3), keepdim=True, dtype=torch.int64) + num_pixels) // (2 * num_pixels)
    return blended(images, mean.float(), factor)


def grayed(images: Tensor) -> Tensor:
    """Pillow's mode L, int32 [b, H, W, 1]."""
    red, green, blue = images.to(torch.int32).split(1, dim=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def smoothed(images: Tensor) -> Tensor:
    """ImageFilter.SMOOTH, int32: the mean over 3 x 3 pixels, the middle one five times; edges as they are."""
    pixels = images.to(torch.int32)
    result = pixels.clone()
    if min(pixels.shape[1:3]) > 2:
        rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
        sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels[:, 1:-1, 1:-1]
        result[:, 1:-1, 1:-1] = (2 * sums + 13) // 26
    return result


def posterized(images: Tensor, bits: Tensor) -> Tensor:
    step = 2.0 ** (8 - bits)
    return (torch.floor(images / step) * step).to(torch.uint8)


def autocontrasted(images: Tensor) -> Tensor:
    """ImageOps.autocontrast, in float64 as there: its cutting off of fractions shows their last bit."""
    counts = histograms(images)
    level = torch.arange(256, device=images.device, dtype=torch.float64)
    is_present = (counts > 0).to(torch.int32)
    low = is_present.argmax(-1, keepdim=True).double()
    high = 255 - is_present.flip(-1).argmax(-1, keepdim=True).double()
    span = torch.where(high > low, high - low, 1.0)
    scale = torch.full_like(span, 255.0) / span  # a Python number over a tensor would be rounded twice
    return looked_up(images, torch.where(high > low, (level * scale + -low * scale).clamp(0, 255), level))


def equalized(images: Tensor) -> Tensor:
    """ImageOps.equalize, in integers."""
    counts = histograms(images)
    level = torch.arange(256, device=images.device)
    last = 255 - (counts > 0).to(torch.int32).flip(-1).argmax(-1, keepdim=True)
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, last)) // 255
    below = counts.cumsum(-1) - counts
    table = (step // 2 + below) // step.clamp(min=1)
    return looked_up(images, torch.where(step > 0, table.clamp(max=255), level))


def histograms(images: Tensor) -> Tensor:
    """How often each level occurs in each channel, int64 [b, 3, 256] of uint8 [b, H, W, 3]. Exact on every device."""
    channel = torch.arange(3 * len(images), device=images.device).view(-1, 1, 1, 3)
    place = (256 * channel + images).flatten()
    counts = torch.zeros(3 * len(images) * 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(0, place, torch.ones_like(place)).view(-1, 3, 256)


def looked_up(images: Tensor, table: Tensor) -> Tensor:
    """Images uint8 [b, H, W, 3], each level replaced by that of `table` [b, 3, 256], its fraction cut off."""
    levels = images.reshape(len(images), -1, 3).long()
    return table.to(torch.uint8).transpose(1, 2).gather(1, levels).view_as(images)


COLORS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.BRIGHTNESS: lambda images, factor: blended(images, 0, factor),
    Operation.COLOR: lambda images, factor: blended(images, grayed(images).float(), factor),
    Operation.CONTRAST: contrasted,
    Operation.SHARPNESS: lambda images, factor: blended(images, smoothed(images).float(), factor),
    Operation.POSTERIZE: posterized,
    Operation.SOLARIZE: lambda images, threshold: torch.where(images < threshold, images, 255 - images),
    Operation.SOLARIZE_ADD: lambda images, levels: torch.where(
        images < 128, (images + levels).clamp(max=255).to(torch.uint8), images
    ),
    Operation.AUTOCONTRAST: lambda images, _: autocontrasted(images),
    Operation.EQUALIZE: lambda images, _: equalized(images),
    Operation.INVERT: lambda images, _: 255 - images,
}

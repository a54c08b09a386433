"""Random erasing (Zhong et al. 2020): the rectangle of each image, drawn on the host; and the erasing on the device.

`erasing_boxes` and `noise_offsets` are called by `plan`, the rest by `augment`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.config import Erasing
from tencrop.data.sampling.rng import Index, Stream, integers_below, normals, random_uint64, uniforms

NUM_ATTEMPTS = 10  # as in timm and torchvision; the paper's algorithm goes on for ever
NUM_OFFSETS = 2**20  # places in the table of noise at which an image's may begin


def erasing_boxes(key: dict[str, Any], erasing: Erasing, *, size: int) -> Index:
    """Top, left, height and width of what is erased of size x size pixels, int64 [B, 4], all 0 where nothing is.

    The paper's algorithm 1: with `prob`, a share of the image uniform over `area`, at a uniform place. Its aspect ratio
    (height / width) is uniform in its logarithm over `aspect`, as in timm and torchvision (the paper's is uniform). The
    first of ten attempts that fits counts; as in both it has to leave a row and a column. Draws: 0 whether, then of
    attempt a those from 1 + 4 a: area, aspect, top, left.
    """
    draw = random_uint64(**key, stream=Stream.ERASE, count=1 + 4 * NUM_ATTEMPTS)
    is_erased = uniforms(**key, stream=Stream.ERASE, count=1) < erasing.prob
    share, ratio = (np.ascontiguousarray((draw[:, part::4] >> np.uint64(11)) * 2.0**-53) for part in (1, 2))
    target = size**2 * (erasing.area[0] + (erasing.area[1] - erasing.area[0]) * share)
    low, high = np.log(erasing.aspect)
    ratio = np.exp(low + (high - low) * ratio)
    height = np.rint(np.sqrt(target * ratio)).astype(np.int64)
    width = np.rint(np.sqrt(target / ratio)).astype(np.int64)
    fits = (height < size) & (width < size)
    top = integers_below(draw[:, 3::4], np.where(fits, size - height + 1, 1))
    left = integers_below(draw[:, 4::4], np.where(fits, size - width + 1, 1))
    first = fits.argmax(axis=1)[:, None, None]
    box = np.take_along_axis(np.stack([top, left, height, width], axis=2), first, axis=1)[:, 0]
    return np.where(is_erased & fits.any(axis=1)[:, None], box, 0)


def noise_offsets(key: dict[str, Any]) -> Index:
    """Where each image's noise begins in the table, int64 [B]; a box of h x w pixels takes 3 h w numbers from there."""
    return integers_below(random_uint64(**key, stream=Stream.ERASE_NOISE, count=1)[:, 0], NUM_OFFSETS)


def is_erased(erasing: Erasing) -> bool:
    """Whether a recipe erases at all."""
    return erasing.prob > 0


def noise_table(*, seed: int, size: int) -> Tensor:
    """The noise of a run on images of size x size pixels: float32 standard normals. Every image reads a stretch of it
    from a place of its own on: a normal for each pixel and channel would be most of the draws of a batch."""
    index = np.arange(-(-(NUM_OFFSETS + 3 * size**2) // 4))
    table = normals(seed=seed, index=index, epoch=0, stream=Stream.NOISE_TABLE, count=4)
    return torch.from_numpy(table.astype(np.float32).reshape(-1))


def erase(inputs: Tensor, boxes: npt.NDArray[np.int32], offsets: Index, *, noise: Tensor | None) -> Tensor:
    """Normalized inputs [B, 3, H, W] with the boxes [B, 4] replaced: by noise (row y, column x, channel c of an
    h x w box is number offset + 3 (w y + x) + c of `noise`), or, where that is None, by 0, the mean.
    """
    inputs = inputs.clone()
    for image, (top, left, height, width), offset in zip(inputs, boxes.tolist(), offsets.tolist(), strict=True):
        if height == 0:
            continue
        box = image[:, top : top + height, left : left + width]
        if noise is None:
            box.zero_()
        else:
            values = noise[offset : offset + 3 * height * width]
            box.copy_(values.view(height, width, 3).permute(2, 0, 1))
    return inputs

"""Random erasing (Zhong et al. 2020): draws a rectangle for each image on the host and erases it on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.config import Augmentation, Config, Erasing
from tencrop.data.augmentation.transform import Params, Samples, Transform
from tencrop.data.sampling.rng import Index, Stream, as_uniforms, integers_below, normals, random_uint64, uniforms

NUM_ATTEMPTS = 10  # as in timm and torchvision; the paper's algorithm repeats until a rectangle fits
NUM_OFFSETS = 2**20  # possible starts of an image's noise in the noise table (4 MB)


class RandomErasing(Transform):
    """Erases a rectangle of the normalized image, or none."""

    noise: Tensor | None

    @staticmethod
    def is_on(augmentation: Augmentation) -> bool:
        return augmentation.erasing.prob > 0

    @staticmethod
    def draw(samples: Samples, augmentation: Augmentation) -> Params:
        """erased_boxes: int32 [B, 4], top, left, height and width in the network's pixels; noise_offsets: int64 [B]."""
        boxes = erasing_boxes(samples.key, augmentation.erasing, size=augmentation.size)
        return {"erased_boxes": boxes.astype(np.int32), "noise_offsets": noise_offsets(samples.key)}

    @staticmethod
    def neutral(num_samples: int) -> Params:
        boxes = np.zeros((num_samples, 4), np.int32)  # empty
        return {"erased_boxes": boxes, "noise_offsets": np.zeros(num_samples, np.int64)}

    def __init__(self, config: Config, statistics: dict[str, Any]):
        super().__init__(config, statistics)
        # 4 MB that are not persistent: they follow from the seed, so no checkpoint holds them.
        is_noisy = config.augmentation.erasing.fill == "normal"
        noise = noise_table(seed=config.seed, size=config.augmentation.size) if is_noisy else None
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        return erase(images, params["erased_boxes"], params["noise_offsets"], noise=self.noise)


def erasing_boxes(key: dict[str, Any], erasing: Erasing, *, size: int) -> Index:
    """Erased rectangles (top, left, height, width) of images of size x size, int64 [B, 4]; all 0 if nothing is erased.

    Algorithm 1 of the paper: with probability `prob`, erase a share of the image uniform over `area` at a uniform
    position. The aspect ratio (height / width) is log-uniform over `aspect`, as in timm and torchvision; the paper's is
    uniform. The first of ten attempts that fits is taken; as in both libraries it must leave a row and a column.
    Draw 0 decides whether to erase; attempt a uses draws 1 + 4a (area), 2 + 4a (aspect), 3 + 4a (top), 4 + 4a (left).
    """
    draw = random_uint64(**key, stream=Stream.ERASE, count=1 + 4 * NUM_ATTEMPTS)
    is_erased = uniforms(**key, stream=Stream.ERASE, count=1) < erasing.prob
    share, ratio = (as_uniforms(draw[:, part::4]) for part in (1, 2))
    target = size**2 * (erasing.area[0] + (erasing.area[1] - erasing.area[0]) * share)
    low, high = np.log(erasing.aspect)
    ratio = np.exp(low + (high - low) * ratio)
    height = np.rint(np.sqrt(target * ratio)).astype(np.int64)
    width = np.rint(np.sqrt(target / ratio)).astype(np.int64)
    fits = (height < size) & (width < size)  # strictly, as in both libraries
    top = integers_below(draw[:, 3::4], np.where(fits, size - height + 1, 1))
    left = integers_below(draw[:, 4::4], np.where(fits, size - width + 1, 1))
    first = fits.argmax(axis=1)[:, None, None]
    box = np.take_along_axis(np.stack([top, left, height, width], axis=2), first, axis=1)[:, 0]
    return np.where(is_erased & fits.any(axis=1)[:, None], box, 0)


def noise_offsets(key: dict[str, Any]) -> Index:
    """Start of each image's noise in the noise table, int64 [B]; a box of h x w pixels takes 3 h w numbers from it."""
    return integers_below(random_uint64(**key, stream=Stream.ERASE_NOISE, count=1)[:, 0], NUM_OFFSETS)


def noise_table(*, seed: int, size: int) -> Tensor:
    """Noise table of a run on images of size x size pixels: float32 standard normals, drawn once.

    Each image copies a stretch from an offset of its own. Drawing a normal for every erased pixel and channel instead
    would take most of the draws of a batch.
    """
    index = np.arange(-(-(NUM_OFFSETS + 3 * size**2) // 4))
    table = normals(seed=seed, index=index, epoch=0, stream=Stream.NOISE_TABLE, count=4)
    return torch.from_numpy(table.astype(np.float32).reshape(-1))


def erase(inputs: Tensor, boxes: npt.NDArray[np.int32], offsets: Index, *, noise: Tensor | None) -> Tensor:
    """Normalized inputs [B, 3, H, W] with the boxes [B, 4] replaced by noise, or by 0 (the mean) if `noise` is None.

    Row y, column x, channel c of an h x w box is element offset + 3 (w y + x) + c of `noise`.
    """
    # One list of all erased pixels, instead of a few operations for each image, since boxes differ in size. The host
    # knows how many pixels there are, so nothing waits for the device. A CPU would be faster with slices, but
    # spends little of a step here.
    erased = np.flatnonzero(boxes[:, 2])
    top, left, height, width = boxes[erased].astype(np.int64).T
    counts = height * width
    facts = np.stack([erased, top, left, width, offsets[erased], np.cumsum(counts) - counts, counts])
    on_device = torch.from_numpy(facts).to(inputs.device, non_blocking=True)
    num_pixels = int(counts.sum())
    per_pixel = on_device[:-1].repeat_interleave(on_device[-1], dim=1, output_size=num_pixels)
    row, y, x, w, offset, first = per_pixel.unbind()
    pixel = torch.arange(num_pixels, device=inputs.device) - first  # number in its box, row by row
    values = inputs.new_zeros(()) if noise is None else noise.unfold(0, 3, 1)[offset + 3 * pixel].to(inputs.dtype)
    inputs = inputs.clone()
    inputs[row, :, y + pixel // w, x + pixel % w] = values
    return inputs

"""Crops of a batch on its device: squares of one size, each at its own place in its image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.data.sampling.geometry import center_box


def central_crops(images: Tensor, sizes: npt.NDArray[np.integer], *, size: int) -> Tensor:
    """The central size x size pixels of each image: uint8 [B, H, W, 3] -> [B, size, size, 3], on their device.

    sizes: [B, 2], height and width of each image in the top left of its slot, at least `size`. Rounded as torchvision's
    CenterCrop rounds.
    """
    # A negative corner would index from the end of the slot and return wrong pixels without an error.
    assert sizes.min() >= size, f"an image is smaller than {size} pixels"
    top, left, _, _ = center_box(sizes[:, 0], sizes[:, 1], size, size)
    corners = torch.from_numpy(np.stack([top, left], axis=1)).to(images.device, non_blocking=True)
    return square_crops(images, corners, size=size)


def square_crops(images: Tensor, corners: Tensor, *, size: int) -> Tensor:
    """Squares [B, size, size, 3] of images [B, H, W, 3]; corners: int64 [B, 2], their top left pixels.

    One gather for the batch: a loop over images would launch a kernel for each.
    """
    span = torch.arange(size, device=images.device)
    rows, columns = (corners[:, axis, None] + span for axis in (0, 1))
    slots = torch.arange(len(images), device=images.device)
    return images[slots[:, None, None], rows[:, :, None], columns[:, None, :]]

"""A micro-batch as the loaders yield it and the augmentation on the device reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tencrop.data.sampling.rng import Index


class Batch(NamedTuple):
    """A micro-batch of B samples on the host [6].

    Tensors are what the device computes with. What the host reads is an array: DDP's forward pass moves every tensor
    of its arguments to the GPU, where a read waits, and leaves arrays alone.
    """

    images: Tensor  # uint8 [B, H, W, 3], sRGB; an image smaller than H x W lies in the upper left, the rest is 0
    labels: Tensor  # int64 [B]
    index: Index  # type: ignore[assignment]  # int64 [B], sample indices; hides tuple.index
    boxes: npt.NDArray[np.int32]  # [B, 4]: top, left, height, width in stored pixels
    flips: npt.NDArray[np.bool_]  # [B]
    sizes: npt.NDArray[np.int32]  # [B, 2], height and width of each image
    pca_alphas: Tensor  # float32 [B, 3], alphas of the RGB principal components
    jitter: Tensor  # float32 [B, 4], factors of brightness, contrast, saturation, and the turn of hue
    jitter_orders: Index  # int64 [B, 4], which of these four comes first, second, third, fourth
    operations: Index  # int64 [B, num_ops], RandAugment's in order
    operation_values: npt.NDArray[np.float32]  # [B, num_ops]
    erased_boxes: npt.NDArray[np.int32]  # [B, 4]: top, left, height, width; empty where nothing is erased
    noise_offsets: Index  # int64 [B], where their noise begins in the run's table
    partners: Tensor  # int64 [B], places from a sample to the one it is mixed with
    mix_weights: Tensor  # float32 [B], a sample's own share of its mix
    mix_boxes: Tensor  # int32 [B, 4]: top, left, height, width pasted from the partner; empty where nothing is
    hashes: Index  # int64 [B, 2] of all of the above but the images; [B, 4] with theirs behind (digest.py)


DEVICE_FIELDS = {"labels", "pca_alphas", "jitter", "partners", "mix_weights", "mix_boxes"}  # tensors, as the images are

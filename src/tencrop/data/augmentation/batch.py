"""The micro-batch that the loaders yield and the augmentation on the device consumes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tencrop.data.sampling.rng import Index


class Batch(NamedTuple):
    """A micro-batch of B samples.

    Fields that the device computes with are tensors; fields that the host reads are NumPy arrays. DDP's forward pass
    moves every tensor among its arguments to the GPU, where reading one synchronizes, and leaves arrays alone.
    """

    images: Tensor  # uint8 [B, H, W, 3], sRGB; an image smaller than H x W is in the upper left, the rest is 0
    labels: Tensor  # int64 [B]
    index: Index  # type: ignore[assignment]  # int64 [B], sample indices; hides tuple.index
    boxes: npt.NDArray[np.int32]  # [B, 4]: top, left, height, width in stored pixels
    flips: npt.NDArray[np.bool_]  # [B]
    sizes: npt.NDArray[np.int32]  # [B, 2], height and width of each image
    pca_alphas: Tensor  # float32 [B, 3], alphas of the RGB principal components
    jitter: Tensor  # float32 [B, 4], factors of brightness, contrast, saturation, and the hue shift
    jitter_orders: Index  # int64 [B, 4], order in which these four are applied
    operations: Index  # int64 [B, num_ops], RandAugment's operations in order
    operation_values: npt.NDArray[np.float32]  # [B, num_ops]
    erased_boxes: npt.NDArray[np.int32]  # [B, 4]: top, left, height, width; empty if nothing is erased
    noise_offsets: Index  # int64 [B], start of their noise in the run's noise table
    partners: Tensor  # int64 [B], offset in the batch from a sample to the one it is mixed with
    mix_weights: Tensor  # float32 [B], lambda: the share of the sample itself
    mix_boxes: Tensor  # int32 [B, 4]: top, left, height, width pasted from the partner; empty if nothing is
    hashes: Index  # int64 [B, 2] of all fields above except the images; [B, 4] if their pixels are hashed too


# The fields that are tensors besides the images. All others stay arrays.
DEVICE_FIELDS = {"labels", "pca_alphas", "jitter", "partners", "mix_weights", "mix_boxes"}

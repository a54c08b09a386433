"""The micro-batch that the loaders yield and the augmentation on the device consumes."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    params: dict[str, Any]  # [B, ...] by name: the transforms' random parameters; `pipeline.DEVICE_PARAMS` are tensors
    hashes: Index  # int64 [B, 2] of all fields above except the images; [B, 4] if their pixels are hashed too

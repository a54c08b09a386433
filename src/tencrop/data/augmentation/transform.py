"""The interface of an augmentation: parameters are drawn on the host for each sample, and applied on the device.

A transform is one class: it draws its parameters, names those that the device needs, and applies them. `pipeline` lists
all transforms. Crop and flip are not among them: they belong to the plan, because the loaders execute them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy.typing as npt
from torch import Tensor, nn

from tencrop.config import Augmentation, Config
from tencrop.data.sampling.rng import Index, View

# Arrays [B, ...] by name; the names are unique over all transforms. Floats are drawn in float64 and used in float32.
Params = dict[str, npt.NDArray[Any]]


class Samples(NamedTuple):
    """The samples of a micro-batch for which parameters are drawn."""

    index: Index  # type: ignore[assignment]  # int64 [B], sample indices; hides tuple.index
    epoch: int
    seed: int
    view: View
    positions: Index | None  # int64 [B], positions in the epoch; only a transform that combines samples needs them

    @property
    def key(self) -> dict[str, Any]:
        """Arguments of the draws in sampling/rng.py: `uniforms(**samples.key, stream=..., count=...)`.

        Neither rank, worker nor batch layout is part of it, so they cannot change an image.
        """
        return {"seed": self.seed, "index": self.index, "epoch": self.epoch, "view": self.view}


class Transform(nn.Module):
    """One augmentation. Only transforms that are on are instantiated, once for a run, as part of the Classifier.

    A module, so that its constants (register_buffer, persistent=False) move to the device with the network.
    """

    device_params: ClassVar[frozenset[str]] = frozenset()  # moved to the device; the others stay NumPy arrays

    @staticmethod
    @abstractmethod
    def is_on(augmentation: Augmentation) -> bool:
        """Whether the recipe uses this transform."""

    @staticmethod
    @abstractmethod
    def draw(samples: Samples, augmentation: Augmentation) -> Params:
        """Random parameters of each sample, if the transform is on; depends on `samples` and the recipe only."""

    @staticmethod
    def neutral(num_samples: int) -> Params:
        """Parameters that change nothing, for a batch in which the transform is off.

        They are part of the data digest. A new transform returns none, so that runs without it keep their digest.
        """
        return {}

    def __init__(self, config: Config, statistics: dict[str, Any]):
        """statistics: mean, std and color covariance on [0, 255], from the manifest of the data."""
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        """Apply to images [B, H, W, 3] on [0, 255], or after `Normalize` to inputs [B, 3, H, W].

        params: those of all transforms, the `device_params` as tensors. Nothing may be drawn here, and nothing read
        back from the device, which would stall it.
        """

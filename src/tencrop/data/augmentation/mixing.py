"""Mixup and CutMix: draws partners, weights and boxes on the host and mixes the images on the device.

A group is `mix_group` consecutive samples of the global batch, which share one draw. Draws are keyed by the group's
number in the epoch and partners are in the same group, so neither ranks nor gradient accumulation change them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv
from torch import Tensor

from tencrop.config import Augmentation, Mixing
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.transform import Params, Samples, Transform
from tencrop.data.sampling.rng import Float64, Index, Stream, integers_below, random_uint64, uniforms


class MixupCutmix(Transform):
    """Mixes each normalized image with its partner in the batch. The training step mixes the labels."""

    device_params = frozenset({"partners", "mix_weights", "mix_boxes"})

    @staticmethod
    def is_on(augmentation: Augmentation) -> bool:
        return augmentation.mixing.mix_group is not None

    @staticmethod
    def draw(samples: Samples, augmentation: Augmentation) -> Params:
        """The fields of `Mix`."""
        positions, size = samples.positions, augmentation.size
        assert positions is not None and len(positions) == len(samples.index)
        mix = mixing_plan(positions, mixing=augmentation.mixing, size=size, seed=samples.seed, epoch=samples.epoch)
        return {"partners": mix.partners, "mix_weights": mix.weights, "mix_boxes": mix.boxes}

    @staticmethod
    def neutral(num_samples: int) -> Params:
        boxes = np.zeros((num_samples, 4), np.int32)
        return {"partners": np.zeros(num_samples, np.int64), "mix_weights": np.ones(num_samples), "mix_boxes": boxes}

    def forward(self, images: Tensor, params: dict[str, Any]) -> Tensor:
        return mix(images, params["partners"], params["mix_weights"], params["mix_boxes"])


class Mix(NamedTuple):
    """How each of B samples is mixed."""

    partners: Index  # int64 [B], offset in the batch from the sample to its partner (may be negative)
    weights: Float64  # [B], lambda: the share of the sample itself, in its pixels and in its label
    boxes: npt.NDArray[np.int32]  # [B, 4] top, left, height, width pasted from the partner (CutMix); empty for mixup


def mixing_plan(positions: Index, *, mixing: Mixing, size: int, seed: int, epoch: int) -> Mix:
    """The mix of the samples at `positions` in the epoch, whose images are size x size pixels.

    The partner of the i-th sample of a group is the i-th from its end, as in timm: the order is random already. The
    five draws of a group: whether to mix, whether by CutMix, lambda, and the two coordinates of the box's center.
    lambda ~ Beta(alpha, alpha) (Zhang et al. 2018, section 2), by the inverse CDF. The CutMix box follows the authors'
    code: sqrt(1 - lambda) of either side, rounded down to an even number of pixels, around a uniform center and clipped
    at the edges; lambda is then corrected to the share of pixels that remain.
    """
    size_of_group = mixing.mix_group
    assert size_of_group is not None
    group, position = np.divmod(np.asarray(positions, np.int64), size_of_group)
    partners = size_of_group - 1 - 2 * position
    # One draw a group, however many of its samples are in this micro-batch.
    numbers, rows = np.unique(group, return_inverse=True)
    is_mixed, is_cut, quantile = uniforms(seed=seed, index=numbers, epoch=epoch, stream=Stream.MIX, count=3).T
    center = integers_below(
        random_uint64(seed=seed, index=numbers, epoch=epoch, stream=Stream.MIX, count=5)[:, 3:], size
    )
    cuts = is_cut < cutmix_share(mixing)
    alpha = np.where(cuts, mixing.cutmix_alpha, mixing.mixup_alpha)
    # The inverse CDF takes exactly one uniform. NumPy's own beta sampler is a rejection method with a variable number
    # of draws, which a counter-based generator cannot provide.
    weights = betaincinv(alpha, alpha, quantile)
    half = (np.sqrt(1 - weights) * size).astype(np.int64)[:, None] // 2
    first, last = np.clip(center - half, 0, size), np.clip(center + half, 0, size)
    boxes = np.where(cuts[:, None], np.concatenate([first, last - first], axis=1), 0)
    weights = np.where(cuts, 1 - boxes[:, 2] * boxes[:, 3] / size**2, weights)
    mixed = is_mixed < mixing.prob
    weights, boxes = np.where(mixed, weights, 1.0), np.where(mixed[:, None], boxes, 0)
    return Mix(partners, weights[rows], boxes[rows].astype(np.int32))


def cutmix_share(mixing: Mixing) -> float:
    """Probability that a mixed group uses CutMix."""
    if mixing.mixup_alpha > 0 and mixing.cutmix_alpha > 0:
        return mixing.switch_prob
    return 1.0 if mixing.cutmix_alpha > 0 else 0.0


def mix(images: Tensor, partners: Tensor, weights: Tensor, boxes: Tensor) -> Tensor:
    """Mix each of the float images [B, C, H, W] with its partner; arguments as in `Mix`, as tensors.

    A sample of weight 1 without a box keeps every bit.
    """
    # Both kinds are one linear interpolation with a weight map: constant for mixup, 0 or 1 per pixel for CutMix. So a
    # batch may hold groups of both kinds.
    height, width = images.shape[2:]
    place = torch.arange(max(height, width), device=images.device)
    start, length = boxes.view(-1, 2, 2, 1).unbind(1)  # [B, 2, 1], of the rows and of the columns
    is_within = (place >= start) & (place < start + length)
    is_pasted = is_within[:, :1, :height, None] & is_within[:, 1:, None, :width]
    outside = weights.to(images.dtype).masked_fill(boxes[:, 2] > 0, 1.0)[:, None, None, None]
    own = torch.where(is_pasted, 0.0, outside)
    return torch.lerp(images[partner_rows(partners)], images, own)


def partner_rows(partners: Tensor) -> Tensor:
    """The partners' rows in the batch, int64 [B]."""
    return torch.arange(len(partners), device=partners.device) + partners


def partner_labels(batch: Batch) -> Tensor:
    """Labels int64 [B] of the samples that are mixed in (a sample's own label if it is not mixed)."""
    return batch.labels[partner_rows(batch.params["partners"])]

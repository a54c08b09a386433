"""Error rates and their uncertainty, from the rank of each image's label among its class scores.

Called by evaluate.py and by the report. The rule of the top k, once for all: a label is in the top k when
fewer than k other classes score at least as high as it does. Ties count against it, so constant scores
are an error of 100%, and an image whose scores are not finite has no rank.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tencrop.config import UserError
from tencrop.training.losses import pessimistic_ranks

NOT_FINITE = -1
Z_95 = 1.959963984540054  # the normal distribution holds 95% within +- Z_95 standard deviations


@dataclass(frozen=True)
class ErrorRate:
    """So many errors among so many images."""

    num_errors: int
    num_images: int

    def __post_init__(self) -> None:
        assert 0 <= self.num_errors <= self.num_images > 0, (self.num_errors, self.num_images)

    @property
    def fraction(self) -> float:
        """Error rate on [0, 1]."""
        return self.num_errors / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson score interval of the fraction."""
        return wilson_interval(self.num_errors, self.num_images)


def error_rate(ranks: Tensor, k: int) -> ErrorRate:
    """Top-k error of images whose labels have these `ranks` (int [N], from label_ranks).

    Raises UserError where an image's scores were not finite.
    """
    if broken := int((ranks == NOT_FINITE).sum()):
        raise UserError(
            f"the scores of {broken} of {len(ranks)} images are NaN or infinite (the first is number"
            f" {int((ranks == NOT_FINITE).nonzero()[0])} of them): there is no error rate;"
            " the weights have diverged or are not those of this network"
        )
    return ErrorRate(num_errors=int((ranks >= k).sum()), num_images=len(ranks))


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many other classes score at least as high as the label: int32 [N], 0 for the only best.

    scores: float [N, K]; labels: int64 [N]. NOT_FINITE for an image with a NaN or infinite score.
    """
    return torch.where(scores.isfinite().all(1), pessimistic_ranks(scores, labels), NOT_FINITE)


def wilson_interval(num_errors: float, num_images: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a binomial fraction (Wilson 1927): (low, high) on [0, 1], 95% by default."""
    fraction, spread = num_errors / num_images, z * z / num_images
    center = fraction + spread / 2
    half = math.sqrt(spread * (fraction * (1 - fraction) + spread / 4))
    low, high = (center - half) / (1 + spread), (center + half) / (1 + spread)
    return (0.0 if num_errors == 0 else low, 1.0 if num_errors == num_images else high)


class OverSeeds(NamedTuple):
    """A number repeated over seeds."""

    mean: float
    std: float | None  # of the sample (n - 1); None for a single seed
    n: int


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean and sample standard deviation with their n, of at least one value."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return OverSeeds(mean=statistics.fmean(values), std=std, n=len(values))

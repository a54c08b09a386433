"""Error rates and their uncertainty, from the rank of each image's label among its class scores.

A label is in the top k if fewer than k other classes score at least as high (`pessimistic_ranks`). Ties count against
the label, so constant scores give an error of 100%. An image with a score that is not finite has no rank.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tencrop.config import UserError

if TYPE_CHECKING:
    from torch import Tensor

NOT_FINITE = -1
Z_95 = 1.959963984540054  # 95% of a normal distribution lies within +- Z_95 standard deviations


@dataclass(frozen=True)
class ErrorRate:
    """A number of errors among a number of images; the counts are kept, so that intervals can be computed."""

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


def error_rate(ranks: Tensor | np.ndarray, k: int) -> ErrorRate:
    """Top-k error rate from the labels' ranks, int [N] as given by label_ranks.

    Raises UserError if the scores of any image were not finite.
    """
    # Not counted as errors: a diverged network would have a plausible error of 100%, and one broken image would hide.
    ranks = np.asarray(ranks)
    if len(broken := np.flatnonzero(ranks == NOT_FINITE)):
        raise UserError(
            f"the scores of {len(broken)} of {len(ranks)} images are NaN or infinite (the first is image number"
            f" {broken[0]}), so there is no error rate;"
            " the weights have diverged or are not those of this network"
        )
    return ErrorRate(num_errors=int((ranks >= k).sum()), num_images=len(ranks))


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many other classes score at least as high as the label: int32 [N]; 0 if the label alone is best.

    scores: float [N, K]; labels: int64 [N]. NOT_FINITE for an image with a NaN or infinite score.
    """
    import torch  # here, so that reports of saved scores need not wait for it

    from tencrop.training.losses import pessimistic_ranks

    return torch.where(scores.isfinite().all(1), pessimistic_ranks(scores, labels), NOT_FINITE)


def wilson_interval(num_errors: float, num_images: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a binomial fraction (Wilson 1927): (low, high) on [0, 1], 95% by default.

    Unlike p +- z * sqrt(p (1 - p) / n), it stays within [0, 1] and has a width at an error of 0 or 100%.
    """
    fraction, spread = num_errors / num_images, z * z / num_images
    center = fraction + spread / 2
    half = math.sqrt(spread * (fraction * (1 - fraction) + spread / 4))
    low, high = (center - half) / (1 + spread), (center + half) / (1 + spread)
    # At both ends the exact bound is 0 or 1; rounding would give 1e-17.
    return (0.0 if num_errors == 0 else low, 1.0 if num_errors == num_images else high)


class OverSeeds(NamedTuple):
    """A measured value over several seeds."""

    mean: float
    std: float | None  # sample standard deviation (n - 1); None for a single seed
    n: int


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean, sample standard deviation and count of at least one value."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return OverSeeds(mean=statistics.fmean(values), std=std, n=len(values))

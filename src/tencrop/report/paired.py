"""Compares the errors of two networks on the same images: McNemar's exact test, and an interval of the difference.

An interval for each network alone is too wide for this: both are tested on the same images and mostly fail on the same
ones, so only the images that one of them gets right are evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tencrop.evaluation.errors import wilson_interval


@dataclass(frozen=True)
class Paired:
    """How many images both networks, only one, or none of them gets right (the 2 x 2 table)."""

    both_right: int
    only_a_wrong: int
    only_b_wrong: int
    both_wrong: int

    @property
    def num_images(self) -> int:
        return self.both_right + self.only_a_wrong + self.only_b_wrong + self.both_wrong

    @property
    def errors_a(self) -> int:
        return self.both_wrong + self.only_a_wrong

    @property
    def errors_b(self) -> int:
        return self.both_wrong + self.only_b_wrong

    @property
    def difference(self) -> float:
        """B's error rate minus A's, as a fraction."""
        return (self.only_b_wrong - self.only_a_wrong) / self.num_images

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: the binomial test that each flipped image is as likely to favor A as B."""
        from scipy.stats import binomtest  # takes 0.7 s, and a page without a comparison does not need it

        flips = self.only_a_wrong + self.only_b_wrong
        return float(binomtest(self.only_a_wrong, flips).pvalue) if flips else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference: Newcombe 1998 (Statistics in Medicine 17, 2635), method 10.

        It combines the two Wilson intervals, allowing for the correlation of the errors. Unlike the normal
        approximation, it has a width even if no image flips.
        """
        n = self.num_images
        rate_a, rate_b = self.errors_a / n, self.errors_b / n
        (low_a, high_a), (low_b, high_b) = wilson_interval(self.errors_a, n), wilson_interval(self.errors_b, n)
        below = _joint(rate_b - low_b, high_a - rate_a, self._correlation)
        above = _joint(high_b - rate_b, rate_a - low_a, self._correlation)
        return self.difference - below, self.difference + above

    @property
    def _correlation(self) -> float:
        """Correlation of the errors over images, on [-1, 1], with Newcombe's continuity correction."""
        n, a, b = self.num_images, self.errors_a, self.errors_b
        margins = a * (n - a) * b * (n - b)
        if margins == 0:  # one of the two is always right, or always wrong
            return 0.0
        excess = self.both_wrong * self.both_right - self.only_a_wrong * self.only_b_wrong
        return (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(margins)


def paired(wrong_a: np.ndarray, wrong_b: np.ndarray) -> Paired:
    """Count two bool arrays [N]: whether A, and whether B, is wrong about each image."""
    assert wrong_a.shape == wrong_b.shape and len(wrong_a), (wrong_a.shape, wrong_b.shape)
    return Paired(
        both_right=int((~wrong_a & ~wrong_b).sum()),
        only_a_wrong=int((wrong_a & ~wrong_b).sum()),
        only_b_wrong=int((~wrong_a & wrong_b).sum()),
        both_wrong=int((wrong_a & wrong_b).sum()),
    )


def _joint(first: float, second: float, correlation: float) -> float:
    """Half-width of a difference whose terms have these half-widths and this correlation."""
    # max: rounding may give -1e-20
    return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))

"""Compares the errors of two networks on the same images: McNemar's exact test, and an interval of the difference.

Separate intervals for the two networks are too wide for a comparison: both networks are tested on the same images and
mostly fail on the same ones. Only the images that exactly one network gets right ("flips") tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tencrop.evaluation.errors import wilson_interval


@dataclass(frozen=True)
class Paired:
    """Number of images that both networks, only one, or neither gets right: a 2 x 2 table."""

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
        """McNemar's exact test, two-sided: a binomial test of whether flips favor A and B equally often."""
        from scipy.stats import binomtest  # the import takes 0.7 s, and most report pages compare nothing

        # Images that both get right, or both wrong, say nothing about which network is better.
        flips = self.only_a_wrong + self.only_b_wrong
        return float(binomtest(self.only_a_wrong, flips).pvalue) if flips else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference: Newcombe 1998 (Statistics in Medicine 17, 2635), method 10.

        It combines the two Wilson intervals and accounts for the correlation of the errors. Unlike the interval of the
        normal approximation, its width is positive even if no image flips.
        """
        n = self.num_images
        rate_a, rate_b = self.errors_a / n, self.errors_b / n
        (low_a, high_a), (low_b, high_b) = wilson_interval(self.errors_a, n), wilson_interval(self.errors_b, n)
        below = _half_width(rate_b - low_b, high_a - rate_a, self._correlation)
        above = _half_width(high_b - rate_b, rate_a - low_a, self._correlation)
        return self.difference - below, self.difference + above

    @property
    def _correlation(self) -> float:
        """Correlation of the errors over images, on [-1, 1], with Newcombe's continuity correction."""
        n, a, b = self.num_images, self.errors_a, self.errors_b
        margins = a * (n - a) * b * (n - b)
        if margins == 0:  # one network is right on all images, or wrong on all
            return 0.0
        excess = self.both_wrong * self.both_right - self.only_a_wrong * self.only_b_wrong
        return (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(margins)


def paired(wrong_a: np.ndarray, wrong_b: np.ndarray) -> Paired:
    """Count the images by who is wrong. wrong_a, wrong_b: bool [N], whether A and B are wrong on each image."""
    assert wrong_a.shape == wrong_b.shape and len(wrong_a), (wrong_a.shape, wrong_b.shape)
    return Paired(
        both_right=int((~wrong_a & ~wrong_b).sum()),
        only_a_wrong=int((wrong_a & ~wrong_b).sum()),
        only_b_wrong=int((~wrong_a & wrong_b).sum()),
        both_wrong=int((wrong_a & wrong_b).sum()),
    )


def _half_width(first: float, second: float, correlation: float) -> float:
    """Half-width of the interval of a difference of two terms, from their half-widths and their correlation."""
    # max: rounding may give -1e-20
    return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))

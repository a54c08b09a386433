"""Decides whether our error reproduces a printed one. Pure functions.

Our error is the mean over k seeds with standard deviation s. The paper's is the mean of n runs, rounded to a last
digit; u is half a unit of that digit. Ours reproduces the paper's if

    |ours - printed| <= u + t s sqrt(1/k + 1/n),

where t is the two-sided 95% quantile of Student's t distribution with k - 1 degrees of freedom. The binomial interval
of the number of images is not used: both errors are measured on the same images, so they differ by training noise only.

A printed difference between two networks is judged likewise, with the mean and the standard deviation of ours.

With fewer than three seeds, s cannot be estimated. Then s = 0.15 points and t = 2 are used and marked as a guess. With
s above 0.4 points, the band would accept almost any number, so there is no verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

REPRODUCED, BETTER, WORSE = "reproduced", "better", "worse"
SEEDS_DISAGREE, NOT_RUN, NO_CLAIM = "seeds disagree", "not run", "no claim"

LEAST_STD = 0.1  # points: lower bound of s, since three seeds may agree by chance
MOST_STD = 0.4  # points: above it there is no verdict
GUESSED_STD, GUESSED_QUANTILE = 0.15, 2.0  # s and t for fewer than three seeds
ROUNDING = 1e-9  # tolerance for floating-point sums of decimals: a difference equal to the band counts as reproduced


@dataclass(frozen=True)
class Verdict:
    """The result of comparing our error with a printed one."""

    word: str  # reproduced | better | worse | seeds disagree
    band: float | None  # half-width around the printed number, in points; None if seeds disagree
    is_guess: bool  # whether the band is a guess, because there are fewer than three seeds


def judge(errors: Sequence[float], printed: float, *, last_digit: float, num_runs: int) -> Verdict:
    """Compare our errors, one per seed, with a printed error, all in percent.

    last_digit: one unit of the last printed digit, such as 0.1; num_runs: number of runs whose mean is printed.
    """
    assert errors, "no seed"
    std = statistics.stdev(errors) if len(errors) > 1 else None
    return judge_mean(
        statistics.fmean(errors), std, len(errors), printed=printed, last_digit=last_digit, num_runs=num_runs
    )


def judge_mean(
    mean: float, std: float | None, num_seeds: int, *, printed: float, last_digit: float, num_runs: int
) -> Verdict:
    """Compare the mean over our seeds, or a mean difference between two networks, with a printed number."""
    assert min(num_seeds, num_runs) >= 1 and last_digit > 0, (num_seeds, num_runs, last_digit)
    is_guess = std is None or num_seeds < 3  # with two seeds, t is 12.7 and the band would accept almost any number
    if std is None or num_seeds < 3:
        std, quantile = GUESSED_STD, GUESSED_QUANTILE
    else:
        std, quantile = max(std, LEAST_STD), student_quantile(num_seeds - 1)
        if std > MOST_STD:
            return Verdict(SEEDS_DISAGREE, None, False)
    # The paper gives no standard deviation of its own, so that of our seeds stands for both.
    band = last_digit / 2 + quantile * std * math.sqrt(1 / num_seeds + 1 / num_runs)
    difference = mean - printed
    word = REPRODUCED if abs(difference) <= band + ROUNDING else WORSE if difference > 0 else BETTER
    return Verdict(word, band, is_guess)


def student_quantile(degrees_of_freedom: int) -> float:
    """Two-sided 95% quantile of Student's t distribution: 95% of it is within [-t, t]."""
    from scipy.special import stdtrit  # takes 0.3 s to import, and most tables have no runs to judge

    return float(stdtrit(degrees_of_freedom, 0.975))

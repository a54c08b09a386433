"""Whether our error reproduces a printed one. Pure; called by render.py.

Ours is the mean over k seeds with standard deviation s, the paper's the mean of n runs, printed to a last digit of
which half is u. Both count the same images, so their binomial intervals are no band for the difference; seeds are. Ours

    reproduces it where |ours - printed| <= u + t s sqrt(1/k + 1/n),

t being the two-sided 95% quantile of Student's distribution for k - 1 degrees of freedom. Fewer than three seeds say
too little of s: then s = 0.15 points and t = 2, which is a guess and said to be one. Seeds that differ by s above 0.4
points agree with any number, so they give no verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

REPRODUCED, BETTER, WORSE = "reproduced", "better", "worse"
SEEDS_DISAGREE, NOT_RUN, NO_CLAIM = "seeds disagree", "not run", "no claim"

LEAST_STD = 0.1  # points: three seeds may agree by chance
MOST_STD = 0.4  # points
GUESSED_STD, GUESSED_QUANTILE = 0.15, 2.0  # of fewer than three seeds
ROUNDING = 1e-9  # of sums of decimal fractions: a difference equal to the band lies within it


@dataclass(frozen=True)
class Verdict:
    """What our error says of a printed one."""

    word: str  # reproduced | better | worse | seeds disagree
    band: float | None  # points around the printed number; None where seeds disagree
    is_guess: bool  # the band is, of fewer than three seeds


def judge(errors: Sequence[float], printed: float, *, last_digit: float, num_runs: int) -> Verdict:
    """The verdict on a printed error, percent, from ours, percent, one a seed.

    last_digit: one unit of the last printed digit (0.1 for 25.6); num_runs: that the printed error is the mean of.
    """
    assert errors and num_runs >= 1 and last_digit > 0, (errors, num_runs, last_digit)
    k = len(errors)
    is_guess = k < 3
    std, quantile = GUESSED_STD, GUESSED_QUANTILE
    if not is_guess:
        std, quantile = max(statistics.stdev(errors), LEAST_STD), student_quantile(k - 1)
        if std > MOST_STD:
            return Verdict(SEEDS_DISAGREE, None, False)
    band = last_digit / 2 + quantile * std * math.sqrt(1 / k + 1 / num_runs)
    difference = statistics.fmean(errors) - printed
    word = REPRODUCED if abs(difference) <= band + ROUNDING else WORSE if difference > 0 else BETTER
    return Verdict(word, band, is_guess)


def student_quantile(degrees_of_freedom: int) -> float:
    """Student's t of which the distribution holds 95% within +- t."""
    from scipy.special import stdtrit  # 0.3 s, and most tables are not run

    return float(stdtrit(degrees_of_freedom, 0.975))

"""The difference of a row's errors from those of its base row, over seeds. Pure functions, called by lines.py.

Where both rows have runs of the same seeds, the difference is paired by seed: two networks that start from the same
random numbers and see the same images vary together, so their difference varies less. Otherwise the means are
compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tencrop.tables.verdicts import student_quantile

Key = TypeVar("Key", bound=Hashable)  # seed of a run, or name of an ensemble


@dataclass(frozen=True)
class Difference:
    """Mean difference between two rows, in percentage points."""

    mean: float
    std: float | None  # standard deviation of the difference of two runs; None with a single run of either row
    num_seeds: int  # pairs of runs; without pairs, the runs of the row that has fewer
    is_paired: bool

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95% interval, from Student's t distribution with num_seeds - 1 degrees of freedom.

        Without pairs, this is a conservative choice: Welch's formula never gives fewer degrees of freedom.
        """
        if self.std is None:
            return None
        return student_quantile(self.num_seeds - 1) * self.std / math.sqrt(self.num_seeds)

    @property
    def exceeds_seeds(self) -> bool | None:
        """Whether the 95% interval excludes 0; None if there is no interval."""
        half = self.half_width
        return None if half is None else abs(self.mean) > half


def difference(own: Mapping[Key, float], base: Mapping[Key, float]) -> Difference:
    """`own` minus `base`, both in percent, by seed (or by ensemble).

    Runs are paired if all seeds of one row are also seeds of the other. The other row's further runs are then left out,
    so the mean can differ from the difference of the two rows' means.
    """
    assert own and base
    shared = [seed for seed in own if seed in base]
    num_seeds = min(len(own), len(base))
    if len(shared) == num_seeds:
        pairs = [own[seed] - base[seed] for seed in shared]
        std = statistics.stdev(pairs) if len(pairs) > 1 else None
        return Difference(statistics.fmean(pairs), std, num_seeds, is_paired=True)
    mean = statistics.fmean(own.values()) - statistics.fmean(base.values())
    if num_seeds == 1:
        return Difference(mean, None, num_seeds, is_paired=False)
    # Scaled so that std / sqrt(num_seeds) is the standard error of a difference of means.
    variance = sum(statistics.variance(errors.values()) / len(errors) for errors in (own, base))
    return Difference(mean, math.sqrt(variance * num_seeds), num_seeds, is_paired=False)

"""McNemar's exact test and the interval of a paired difference, against hand-computed values."""

import math

import numpy as np
import pytest

from tencrop.report.paired import Paired, paired


def test_counts_of_two_networks():
    wrong_a = np.array([True, True, True, False, False, False, False])
    wrong_b = np.array([True, False, False, True, False, False, False])
    found = paired(wrong_a, wrong_b)
    assert found == Paired(both_right=3, only_a_wrong=2, only_b_wrong=1, both_wrong=1)
    assert (found.num_images, found.errors_a, found.errors_b) == (7, 3, 2)
    assert found.difference == pytest.approx(-1 / 7)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),  # nothing flips
        (5, 5, 1.0),
        (1, 0, 1.0),  # one coin toss shows nothing
        (6, 0, 2 / 2**6),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (2, 12, 2 * (1 + 14 + 91) / 2**14),
    ],
)
def test_p_value_by_hand(only_a, only_b, p):
    assert Paired(100, only_a, only_b, 7).p_value == pytest.approx(p, abs=1e-12)


def test_p_value_is_exact_for_thousands_of_flips():
    """Sums of exact integers, which no approximation enters."""
    for only_a, only_b in ((1000, 1100), (2500, 2500), (40, 900)):
        flips, least = only_a + only_b, min(only_a, only_b)
        both_tails = 2 * sum(math.comb(flips, count) for count in range(least + 1))
        expected = min(1.0, both_tails / 2**flips)
        assert Paired(30000, only_a, only_b, 50).p_value == pytest.approx(expected, rel=1e-9)


def wilson_by_roots(share: float, num: int) -> tuple[float, float]:
    """The two shares p at which |share - p| is 1.96 standard errors sqrt(p (1 - p) / num)."""
    z2 = 1.959963984540054**2
    low, high = sorted(np.roots([1 + z2 / num, -(2 * share + z2 / num), share**2]).real)
    return low, high


def newcombe_by_hand(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Method 10 in the paper's own terms: the interval of p1 - p2 for a table of paired successes."""
    num = both + first + second + neither
    p1, p2 = (both + first) / num, (both + second) / num
    (l1, u1), (l2, u2) = wilson_by_roots(p1, num), wilson_by_roots(p2, num)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross: float = both * neither - first * second
    cross = max(cross - num / 2, 0) if cross > 0 else cross
    phi = cross / margins**0.5 if margins else 0
    delta2 = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    epsilon2 = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return p1 - p2 - delta2**0.5, p1 - p2 + epsilon2**0.5


@pytest.mark.parametrize(
    "counts", [(36, 12, 2, 0), (20, 12, 2, 16), (2, 3, 5, 490), (0, 5, 5, 90), (1000, 300, 200, 8500), (50, 0, 0, 50)]
)
def test_interval_equals_the_papers_formula(counts):
    both, only_b, only_a, neither = counts
    found = Paired(both_right=neither, only_a_wrong=only_a, only_b_wrong=only_b, both_wrong=both)
    assert found.interval == pytest.approx(newcombe_by_hand(*counts), abs=1e-9)
    swapped = Paired(both_right=neither, only_a_wrong=only_b, only_b_wrong=only_a, both_wrong=both)
    assert swapped.interval == pytest.approx((-found.interval[1], -found.interval[0]), abs=1e-9)


def test_interval_has_a_width_without_flips_and_is_narrower_than_for_independent_errors():
    low, high = Paired(500, 0, 0, 0).interval
    assert low == pytest.approx(-high) and 0 < high < 0.01
    together, apart = Paired(900, 10, 10, 80), Paired(820, 90, 90, 0)
    assert together.interval[1] - together.interval[0] < (apart.interval[1] - apart.interval[0]) / 2


def test_interval_covers_the_truth_in_95_of_100_samples():
    """Simulated pairs of networks with errors of 20% and 15% that mostly fail together."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(2000, [0.77, 0.08, 0.03, 0.12], size=400).tolist()
    covered = sum(low <= -0.05 <= high for low, high in (Paired(*count).interval for count in counts))
    assert 0.92 < covered / 400 < 0.98

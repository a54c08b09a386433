"""Verdicts at the edges of their bands; quantiles compared with printed tables of Student's t distribution."""

import pytest

from tencrop.tables.verdicts import BETTER, REPRODUCED, SEEDS_DISAGREE, WORSE, judge, student_quantile
from typed import present

# two-sided 95%, as tables print it
QUANTILES = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228, 20: 2.086, 30: 2.042, 120: 1.980}


def word(errors, printed, *, last_digit=0.1, num_runs=1) -> str:
    return judge(errors, printed, last_digit=last_digit, num_runs=num_runs).word


@pytest.mark.parametrize("degrees_of_freedom", QUANTILES)
def test_quantiles_are_those_of_printed_tables(degrees_of_freedom: int) -> None:
    assert student_quantile(degrees_of_freedom) == pytest.approx(QUANTILES[degrees_of_freedom], abs=5e-4)


def test_moving_a_printed_number_by_a_point_changes_the_verdict() -> None:
    errors = [24.1, 23.9, 24.0]  # s = 0.1: band 0.05 + 4.303 x 0.1 x sqrt(1/3 + 1) = 0.547
    assert word(errors, 24.0) == REPRODUCED
    assert word(errors, 23.0) == WORSE
    assert word(errors, 25.0) == BETTER


def test_one_seed_has_a_guessed_band() -> None:
    verdict = judge([24.0], 24.0, last_digit=0.1, num_runs=1)
    assert verdict.is_guess and verdict.band == pytest.approx(0.05 + 2 * 0.15 * 2**0.5)
    assert judge([24.0, 24.2], 24.0, last_digit=0.1, num_runs=1).band == pytest.approx(0.05 + 2 * 0.15 * 1.5**0.5)


def test_three_seeds_use_their_own_deviation() -> None:
    verdict = judge([23.8, 24.0, 24.2], 24.0, last_digit=0.01, num_runs=5)
    assert not verdict.is_guess
    assert verdict.band == pytest.approx(0.005 + 4.302653 * 0.2 * (1 / 3 + 1 / 5) ** 0.5, abs=1e-5)


def test_the_deviation_has_a_lower_bound() -> None:
    verdict = judge([24.0, 24.0, 24.0, 24.0], 24.0, last_digit=0.1, num_runs=1)
    assert verdict.band == pytest.approx(0.05 + 3.182446 * 0.1 * 1.25**0.5, abs=1e-5)


def test_seeds_that_disagree_give_no_verdict() -> None:
    assert word([24.0, 24.5, 23.5], 24.0) == SEEDS_DISAGREE
    assert word([24.0, 24.4, 23.6], 24.0) == REPRODUCED  # s = 0.4
    assert word([24.0, 25.0], 24.5) == REPRODUCED  # s of two says nothing


@pytest.mark.parametrize(
    ("ours", "expected"), [(24.05, REPRODUCED), (24.051, WORSE), (23.95, REPRODUCED), (23.949, BETTER)]
)
def test_the_edge_of_the_band_counts_as_reproduced(ours: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tencrop.tables.verdicts.GUESSED_STD", 0.0)
    assert word([ours], 24.0) == expected


def test_one_more_digit_narrows_the_band() -> None:
    bands = [present(judge([24.0], 25.6, last_digit=digit, num_runs=1).band) for digit in (0.1, 0.01)]
    assert bands[0] - bands[1] == pytest.approx(0.045)

"""Ranks, error rates and their intervals, against hand-computed values and a slow count."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tencrop.config import UserError
from tencrop.evaluation.errors import ErrorRate, error_rate, label_ranks, over_seeds, wilson_interval
from tencrop.training.losses import topk_errors


def is_in_top(scores: list[float], label: int, k: int) -> bool:
    """The rule in words: fewer than k other classes score at least as high."""
    return sum(score >= scores[label] for number, score in enumerate(scores) if number != label) < k


@settings(deadline=None)
@given(
    scores=st.lists(st.lists(st.integers(0, 3).map(float), min_size=7, max_size=7), min_size=1, max_size=8),
    label=st.integers(0, 6),
    k=st.integers(1, 5),
)
def test_error_rate_counts_ties_against_the_label(scores: list[list[float]], label: int, k: int) -> None:
    labels = torch.full((len(scores),), label)
    rate = error_rate(label_ranks(torch.tensor(scores), labels), k)
    assert rate.num_images == len(scores)
    assert rate.num_errors == sum(not is_in_top(row, label, k) for row in scores)
    assert rate.num_errors == topk_errors(torch.tensor(scores), labels, k).sum(), "training counts by the same rule"


def test_ranks() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [1.0, 1.0, 1.0]])
    assert label_ranks(scores, torch.tensor([1, 1, 1])).tolist() == [0, 1, 2]
    assert label_ranks(scores, torch.tensor([0, 2, 0])).tolist() == [2, 2, 2]
    assert label_ranks(scores, torch.tensor([0, 0, 0])).dtype == torch.int32


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0])
def test_constant_scores_are_100_percent_error(constant: float) -> None:
    ranks = label_ranks(torch.full((20, 10), constant), torch.arange(20) % 10)
    assert error_rate(ranks, 1).fraction == 1 and error_rate(ranks, 5).fraction == 1


def test_with_few_classes_every_label_is_in_the_top_five() -> None:
    ranks = label_ranks(torch.randn(20, 3), torch.zeros(20, dtype=torch.int64))
    assert error_rate(ranks, 5).fraction == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_give_no_error_rate(bad: float) -> None:
    scores = torch.randn(6, 4)
    scores[3, 2] = bad
    with pytest.raises(UserError, match=r"1 of 6 images are NaN or infinite \(the first is image number 3"):
        error_rate(label_ranks(scores, torch.zeros(6, dtype=torch.int64)), 1)


@pytest.mark.parametrize(
    "num_errors, num_images, low, high",
    [
        # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), worked out by hand with z = 1.959964
        (1, 10, 0.017876, 0.404150),
        (15, 148, 0.062386, 0.160510),  # Newcombe 1998, Table I: 0.0624 to 0.1605
        (81, 263, 0.255274, 0.366221),  # ibid.: 0.2553 to 0.3662
        (0, 20, 0.0, 0.161125),  # ibid.: 0 to 0.1611
        (20, 20, 0.838875, 1.0),
    ],
)
def test_wilson_interval(num_errors: int, num_images: int, low: float, high: float) -> None:
    assert wilson_interval(num_errors, num_images) == pytest.approx((low, high), abs=1e-4)


@given(num_images=st.integers(1, 60_000), share=st.floats(0, 1))
def test_wilson_interval_contains_the_rate_and_is_symmetric(num_images: int, share: float) -> None:
    rate = ErrorRate(round(share * num_images), num_images)
    low, high = rate.interval
    assert 0 <= low <= rate.fraction <= high <= 1
    right = ErrorRate(num_images - rate.num_errors, num_images).interval
    assert right == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_over_seeds() -> None:
    assert over_seeds([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.1, 3))
    assert over_seeds([0.25]) == (0.25, None, 1)

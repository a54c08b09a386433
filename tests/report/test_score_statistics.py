"""Errors by class, confused classes and calibration, each against numbers worked out by hand or by a plain loop."""

import numpy as np
import pytest
import torch

from tencrop.evaluation.errors import ErrorRate
from tencrop.evaluation.score_files import count_ranks
from tencrop.report.score_statistics import (
    ClassErrors,
    Confusion,
    answers,
    calibration,
    class_errors,
    confusions,
    top1_confidences,
    worst_first,
)

#                    label 0   0    0    1    1    1    2
SCORES = np.array(
    [
        [0.8, 0.1, 0.1],  # right
        [0.4, 0.4, 0.2],  # a tie counts against the label: taken for 1
        [0.1, 0.6, 0.3],  # taken for 1
        [0.1, 0.8, 0.1],  # right
        [0.3, 0.2, 0.5],  # taken for 2
        [0.4, 0.2, 0.4],  # taken for 0, the first of equal classes
        [0.0, 0.1, 0.9],  # right
    ],
    np.float32,
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])


def test_answers_agree_with_the_top_k_rule():
    found = answers(SCORES, LABELS, count_ranks(SCORES, LABELS))
    assert found.tolist() == [0, 1, 1, 1, 2, 0, 2]
    random = np.random.default_rng(0).integers(0, 4, (300, 6)).astype(np.float32)  # with many ties
    labels = np.arange(300) % 6
    ranks = count_ranks(random, labels)
    assert np.array_equal(answers(random, labels, ranks) != labels, ranks >= 1)


def test_class_errors_by_hand():
    answered = answers(SCORES, LABELS, count_ranks(SCORES, LABELS))
    assert class_errors(LABELS, answered, 4) == [
        ClassErrors(0, ErrorRate(2, 3), 1, 2),
        ClassErrors(1, ErrorRate(2, 3), 0, 1),
        ClassErrors(2, ErrorRate(0, 1), None, 0),
    ], "class 3 has no image, and so no error rate"


def test_the_worst_class_comes_first_and_of_equal_ones_the_larger():
    classes = [ClassErrors(label, ErrorRate(*rate), None, 0) for label, rate in enumerate([(0, 5), (1, 2), (3, 6)])]
    assert [one.label for one in worst_first(classes)] == [2, 1, 0]


def test_confusions_by_hand():
    answered = answers(SCORES, LABELS, count_ranks(SCORES, LABELS))
    assert confusions(LABELS, answered) == [Confusion(0, 1, 2), Confusion(1, 0, 1), Confusion(1, 2, 1)]
    assert confusions(LABELS, LABELS) == []


def plain_calibration_error(confidences: list[float], is_right: list[bool], num_bins: int) -> float:
    """Equations 3 and 5 of Guo et al. 2017 as they stand, image by image."""
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        members = [at for at, value in enumerate(confidences) if low < value <= high]
        if members:
            accuracy = sum(is_right[at] for at in members) / len(members)
            confidence = sum(confidences[at] for at in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_equals_a_plain_loop(num_bins):
    rng = np.random.default_rng(num_bins)
    edges = np.arange(1, num_bins + 1) / num_bins  # an edge belongs to the bin below it
    confidences = np.concatenate([rng.uniform(1e-3, 1, 500), edges, [1.0, 1.0]])
    is_right = rng.uniform(size=len(confidences)) < confidences**2
    found = calibration(confidences, is_right, num_bins)
    expected = plain_calibration_error(confidences.tolist(), is_right.tolist(), num_bins)
    assert found.expected_error == pytest.approx(expected, abs=1e-12) and expected > 0.05
    assert found.num_images == len(confidences) and len(found.bins) == num_bins
    assert found.confidence == pytest.approx(confidences.mean()) and found.accuracy == pytest.approx(is_right.mean())


def test_calibration_by_hand():
    found = calibration(np.array([0.9, 1.0, 0.4]), np.array([True, False, True]))
    last, sixth = found.bins[-1], found.bins[5]  # 0.4 is the upper end of the sixth of 15 bins
    assert (sixth.num_images, sixth.confidence, sixth.accuracy) == (1, pytest.approx(0.4), 1.0)
    assert (last.num_images, last.accuracy) == (1, 0.0)
    assert found.expected_error == pytest.approx((abs(1 - 0.9) + abs(0 - 1.0) + abs(1 - 0.4)) / 3)


def test_averaged_logits_become_probabilities_by_softmax():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 30
    found = top1_confidences(logits.numpy(), "logits")
    assert np.allclose(found, logits.double().softmax(1).max(1).values.numpy(), atol=1e-6) and found.max() <= 1


def test_averaged_softmax_is_taken_as_it_is():
    softmax = np.array([[0.25, 0.75], [1.0000001, 0.0]], np.float32)
    assert top1_confidences(softmax, "softmax").tolist() == [0.75, 1.0], "a mean may exceed 1 by rounding"

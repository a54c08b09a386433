"""What the scores of every image tell beyond the error rate: errors by class, confused classes, calibration.

Pure functions of NumPy arrays. Which images are errors follows from the labels' ranks, which evaluation counted by the
project's one top-k rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tencrop.evaluation.errors import ErrorRate

NUM_BINS = 15  # of the confidence, as Guo et al. 2017 use


class ClassErrors(NamedTuple):
    """The top-1 errors among the images of a class, and the wrong answer given most often."""

    label: int
    errors: ErrorRate
    answer: int | None  # None without an error
    num_answers: int  # how many images of the class got this answer


class Confusion(NamedTuple):
    """How many images of class `label` were taken for class `answer`."""

    label: int
    answer: int
    num_images: int


class Bin(NamedTuple):
    """The images whose confidence lies in (low, high]."""

    low: float
    high: float
    num_images: int
    confidence: float  # mean over the images; 0 in an empty bin, as the next
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How well the confidence in the top-1 class predicts how often it is right."""

    bins: tuple[Bin, ...]

    @property
    def num_images(self) -> int:
        return sum(one.num_images for one in self.bins)

    @property
    def expected_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, equation 5), on [0, 1]: the mean |accuracy - confidence|.

        The mean is over bins, weighted by their images. The value depends on the number of bins.
        """
        return self._mean([abs(one.accuracy - one.confidence) for one in self.bins])

    @property
    def confidence(self) -> float:
        """Mean over all images."""
        return self._mean([one.confidence for one in self.bins])

    @property
    def accuracy(self) -> float:
        return self._mean([one.accuracy for one in self.bins])

    def _mean(self, values: list[float]) -> float:
        weighted = zip(values, self.bins, strict=True)
        return sum(value * one.num_images for value, one in weighted) / self.num_images


def answers(scores: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The class that each image is taken for: its label if that is the top-1 class, else the best other class.

    scores: float [N, K]; labels: int64 [N]; ranks: int32 [N]; returns int64 [N]. Under the top-k rule a label that
    ties with another class is an error, so plain argmax could call an error right. The first of equal classes is taken.
    """
    others = scores.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return np.where(ranks == 0, labels, others.argmax(1))


def class_errors(labels: np.ndarray, answered: np.ndarray, num_classes: int) -> list[ClassErrors]:
    """One entry for each class that has images, in the order of class numbers."""
    found = []
    for label in range(num_classes):
        given = np.bincount(answered[labels == label], minlength=num_classes)
        num_images = int(given.sum())
        if num_images == 0:
            continue
        # 0, so that argmax finds the most frequent wrong answer.
        num_right, given[label] = int(given[label]), 0
        answer = int(given.argmax())
        wrong = (answer, int(given[answer])) if given[answer] else (None, 0)
        found.append(ClassErrors(label, ErrorRate(num_images - num_right, num_images), *wrong))
    return found


def worst_first(classes: list[ClassErrors]) -> list[ClassErrors]:
    """Sorted by falling error rate; of equal rates, the class with more images comes first."""
    return sorted(classes, key=lambda one: (-one.errors.fraction, -one.errors.num_images, one.label))


def confusions(labels: np.ndarray, answered: np.ndarray) -> list[Confusion]:
    """All pairs of a label and another class that an image was taken for, most frequent first."""
    is_wrong = answered != labels
    pairs, counts = np.unique(np.stack([labels[is_wrong], answered[is_wrong]], 1), axis=0, return_counts=True)
    found = [Confusion(int(one[0]), int(one[1]), int(count)) for one, count in zip(pairs, counts, strict=True)]
    return sorted(found, key=lambda one: (-one.num_images, one.label, one.answer))


def top1_confidences(scores: np.ndarray, average: str) -> np.ndarray:
    """The largest class probability of each image, float64 [N] on [0, 1].

    scores: float32 [N, K]. Averaged softmax ("softmax") are probabilities; averaged logits ("logits") become ones by
    softmax. The two differ: a mean of softmax over views is less confident than the softmax of the mean logits.
    """
    best = scores.max(1)
    if average == "softmax":
        # A mean of softmax may exceed 1 by rounding.
        return np.minimum(best.astype(np.float64), 1.0)
    # The largest term is exp(0) = 1.
    return 1 / np.exp(scores - best[:, None]).sum(1, dtype=np.float64)


def calibration(confidences: np.ndarray, is_right: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """Bins of equal width on (0, 1].

    confidences: float [N], as from top1_confidences; is_right: bool [N], whether its top-1 is right.
    """
    edges = np.arange(num_bins + 1) / num_bins
    # right=True: a confidence of exactly 1.0 belongs to the last bin.
    number = np.digitize(confidences, edges, right=True) - 1
    counts = np.bincount(number, minlength=num_bins)
    # The sums of an empty bin are 0, and so are its means.
    divisor = np.maximum(counts, 1)
    means = np.bincount(number, confidences, num_bins) / divisor
    accuracies = np.bincount(number, is_right, num_bins) / divisor
    columns = (edges[:-1], edges[1:], counts, means, accuracies)
    return Calibration(tuple(Bin(*(column[one].item() for column in columns)) for one in range(num_bins)))

"""Statistics of a score file as tables: errors at any k, errors by class, confused classes, calibration.

Needs neither the checkpoint nor the data nor a GPU. Used by report.py scores=... (score_output.py) and by the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tencrop.data.sources.imagenet_test_sets import classes_within
from tencrop.evaluation.errors import ErrorRate, error_rate
from tencrop.evaluation.score_files import ranks_within
from tencrop.report.blocks import Block
from tencrop.report.score_sources import SavedScores
from tencrop.report.score_statistics import (
    NUM_BINS,
    Calibration,
    ClassErrors,
    Confusion,
    answers,
    calibration,
    class_errors,
    confusions,
    top1_confidences,
    worst_first,
)

CONFIDENCES = {
    "softmax": "its softmax averaged over the views",
    "logits": "the softmax of its logits averaged over the views",
}


@dataclass(frozen=True)
class ScoreReport:
    """The statistics of one score file."""

    path: Path  # of the score file
    average: str  # softmax | logits
    metadata: dict[str, str]
    names: list[str]  # of the classes
    errors: dict[int, ErrorRate]  # by k
    errors_within: dict[int, ErrorRate]  # among the 200 classes of ImageNet-A and -R; empty for other data
    classes: list[ClassErrors]  # worst first
    confused: list[Confusion]  # most frequent first
    calibration: Calibration

    @property
    def about(self) -> str:
        """Network, data, protocol, counts and weights, on one line."""
        model, data, weights = (self.metadata.get(key, "?") for key in ("model", "data", "weights_sha256"))
        counts = f"{self.calibration.num_images:,} images, {len(self.names):,} classes"
        return f"{model} on {data}, {self.path.stem}, averaged {self.average}; {counts}; weights {weights[:12]}"

    @property
    def calibration_sentence(self) -> str:
        """The expected calibration error, and how it is defined."""
        found = self.calibration
        return (
            f"Expected calibration error: {100 * found.expected_error:.2f} points, over {NUM_BINS} bins of equal width"
            f" of the confidence in the top-1 class, which is {CONFIDENCES[self.average]}. Mean confidence"
            f" {100 * found.confidence:.2f}%, accuracy {100 * found.accuracy:.2f}%."
        )


def score_report(saved: SavedScores, ks: Sequence[int]) -> ScoreReport:
    """All statistics of a score file. Raises UserError if a score is NaN or infinite."""
    errors = {k: error_rate(saved.ranks, k) for k in ks}
    # Computed once for classes and confusions: 0.07 s and a second copy of the scores, 200 MB for ImageNet.
    answered = answers(saved.scores, saved.labels, saved.ranks)
    return ScoreReport(
        path=saved.path,
        average=saved.average,
        metadata=saved.metadata,
        names=saved.classes,
        errors=errors,
        errors_within=_errors_within(saved, ks),
        classes=worst_first(class_errors(saved.labels, answered, saved.scores.shape[1])),
        confused=confusions(saved.labels, answered),
        # ranks == 0, and not argmax == label: a tie counts as an error here as everywhere.
        calibration=calibration(top1_confidences(saved.scores, saved.average), saved.ranks == 0),
    )


def error_block(report: ScoreReport) -> Block:
    """The error rates at every k."""
    parts, note = [("", report.errors)], ""
    if report.errors_within:
        num_all = len(report.names)
        parts = [(" among its own classes", report.errors_within), (f" among all {num_all:,} classes", report.errors)]
        note = f"What follows is counted among all {num_all:,} classes."
    rows = [
        (f"top-{k}{among}", *percent(rate), f"{rate.num_errors:,}") for among, part in parts for k, rate in part.items()
    ]
    return Block("", ("error", "percent", "95% interval", "errors"), rows, left=(0,), note=note)


def class_block(report: ScoreReport, *, more_in: str = "") -> Block:
    """The classes, worst first; more_in: where the others are, if there are too many to show."""
    names = report.names
    rows = [
        (
            names[one.label],
            f"{one.errors.num_images:,}",
            *percent(one.errors),
            "" if one.answer is None else f"{names[one.answer]} ({one.num_answers:,})",
        )
        for one in report.classes
    ]
    head = ("class", "images", "error %", "95% interval", "most often taken for")
    return Block("Classes, highest top-1 error first", head, rows, left=(0, 4), more_in=more_in)


def confusion_block(report: ScoreReport, *, more_in: str = "") -> Block:
    """Pairs of a class and the class that its images are taken for, most frequent first."""
    names = report.names
    rows = [(names[one.label], names[one.answer], f"{one.num_images:,}") for one in report.confused]
    title = "Most confused classes" if rows else "No image is taken for another class."
    return Block(title, ("class", "taken for", "images"), rows, left=(0, 1), more_in=more_in)


def calibration_block(report: ScoreReport) -> Block:
    """Confidence and accuracy of the bins that have images."""
    rows = [
        (f"{low:.3f} – {high:.3f}", f"{num_images:,}", f"{100 * confidence:.2f}", f"{100 * accuracy:.2f}")
        for low, high, num_images, confidence, accuracy in report.calibration.bins
        if num_images
    ]
    head = ("confidence", "images", "mean %", "accuracy %")
    return Block("Calibration", head, rows, note=report.calibration_sentence, all_rows=True)


def _errors_within(saved: SavedScores, ks: Sequence[int]) -> dict[int, ErrorRate]:
    if (classes := classes_within(saved.metadata.get("data", ""))) is None:
        return {}
    # Scores of the other 800 classes are left out, as the test sets' authors do it; nothing is renormalized, since
    # ranks need no probabilities.
    ranks = ranks_within(saved.scores, saved.labels, classes)
    return {k: error_rate(ranks, k) for k in ks}


def percent(rate: ErrorRate) -> tuple[str, str]:
    """The rate and its 95% interval in percent, as text."""
    low, high = rate.interval
    return f"{100 * rate.fraction:.2f}", f"{100 * low:.2f} – {100 * high:.2f}"

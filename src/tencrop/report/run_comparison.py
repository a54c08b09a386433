"""Two networks' scores of the same images side by side: which images and classes they differ in.

comparison_output.py prints it for report.py compare=[A,B].
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tencrop.config import UserError
from tencrop.evaluation.errors import error_rate
from tencrop.report.paired import Paired, paired
from tencrop.report.score_sources import SavedScores
from tencrop.report.score_statistics import answers

# Metadata keys that may differ without a word: the weights differ by intention, and the rest is checked or compared
# in _other_protocol.
EXPECTED = {"weights_sha256", "source_fingerprint", "protocol"}


@dataclass(frozen=True)
class Comparison:
    """Two networks' scores of the same images."""

    a: SavedScores
    b: SavedScores
    ks: Sequence[int]

    def wrong(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether A, and whether B, is wrong about each image at top-k: two bool arrays [N]."""
        return self.a.ranks >= k, self.b.ranks >= k

    def paired(self, k: int) -> Paired:
        return paired(*self.wrong(k))

    @cached_property
    def answered(self) -> tuple[np.ndarray, np.ndarray]:
        """The class that A, and B, take each image for: int64 [N]."""
        a, b = self.a, self.b
        return answers(a.scores, a.labels, a.ranks), answers(b.scores, b.labels, b.ranks)

    @cached_property
    def named(self) -> SavedScores:
        """The one of the two whose run folder tells the names of images and classes, if either does."""
        # Weights from elsewhere have no run folder, and so no names of images and classes.
        return self.a if self.a.manifest is not None or self.b.manifest is None else self.b

    def differences_of_classes(self, k: int) -> list[tuple[int, int, int, int]]:
        """(label, images, errors of A, errors of B) of the classes whose error differs, largest difference first."""
        wrong_a, wrong_b = self.wrong(k)
        # bincount takes 0.2 ms for 50,000 images; a mask for each of 1,000 classes would take 16 ms.
        counts = [np.bincount(self.a.labels, weights=which) for which in (None, wrong_a, wrong_b)]
        rows = [(label, *(int(count[label]) for count in counts)) for label in range(len(counts[0]))]
        found = [(label, images, a, b) for label, images, a, b in rows if a != b]
        # By rate, not by count: in a data set with unequal classes, the largest would otherwise always lead.
        return sorted(found, key=lambda row: (-abs(row[3] - row[2]) / row[1], -row[1], row[0]))


def compare(a: SavedScores, b: SavedScores, *, ks: Sequence[int]) -> Comparison:
    """Check that both files are of the same images. Raises UserError if not, or if scores are NaN."""
    fingerprints = [one.metadata.get("source_fingerprint") for one in (a, b)]
    # Neither equal counts nor equal labels prove equal images: ImageNet-V2's three variants share both.
    if fingerprints[0] != fingerprints[1] or len(a.labels) != len(b.labels):
        counts = f"{len(a.labels):,} and {len(b.labels):,}"
        raise UserError(
            f"{a.path} and {b.path}: are of different images ({counts}; source_fingerprint"
            f" {str(fingerprints[0])[:12]} and {str(fingerprints[1])[:12]}); evaluate both on the same data"
        )
    if a.scores.shape != b.scores.shape or not np.array_equal(a.labels, b.labels):
        raise UserError(f"{a.path} and {b.path}: have different labels or classes; evaluate both on the same data")
    for one in (a, b):
        error_rate(one.ranks, 1)  # refuses NaN, which would count as no error here
    return Comparison(a, b, ks)


def differing(comparison: Comparison) -> list[str]:
    """Sentences on what differs between the two beside the weights: protocol, training data, model, precision."""
    a, b = comparison.a, comparison.b
    protocols = _changed(_protocol(a), _protocol(b))
    differ = f"The test protocols differ: {'; '.join(protocols)}."
    sentences = [differ if protocols else "The test protocols are equal."]
    if others := _changed(a.metadata, b.metadata, without=EXPECTED):
        sentences.append(f"The evaluations differ: {'; '.join(others)}.")
    if a.metadata.get("weights_sha256") == b.metadata.get("weights_sha256"):
        sentences.append("Both are of the same weights.")
    if a.manifest is not None and b.manifest is not None:
        # The stored bytes, since a store of reduced images trains another network than the originals.
        data = [one["data"]["splits"]["train"]["store_fingerprint"] for one in (a.manifest, b.manifest)]
        sentences.append("The training data are the same." if data[0] == data[1] else "The training data differ.")
    return sentences + [sentence for name, one in (("A", a), ("B", b)) if (sentence := _state(name, one))]


def _state(name: str, saved: SavedScores) -> str:
    """A sentence if the run of these scores is not complete, or was trained further since."""
    if saved.manifest is None:
        return ""
    result = saved.manifest["result"]
    if result["status"] != "complete":
        return f"{name}'s training is not complete."
    is_final = saved.metadata.get("weights_sha256") in (result["weights_sha256"], result["ema_sha256"])
    return "" if is_final else f"{name}'s scores are not of the weights that its run ended with."


def _protocol(saved: SavedScores) -> dict[str, Any]:
    """The protocol's settings; an ensemble's members may have several, which stay one text."""
    text = saved.metadata.get("protocol", "")
    try:
        found = json.loads(text)
    except ValueError:
        return {"protocol": text}
    return found if isinstance(found, dict) else {"protocol": text}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any], *, without: Collection[str] = ()) -> list[str]:
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in without and a.get(key) != b.get(key)]
    return [f"{key} {_shown(a.get(key))} and {_shown(b.get(key))}" for key in keys]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}" if len(text) == 64 else text  # a SHA-256

"""Two score files side by side, on seven images of three classes worked out by hand."""

from pathlib import Path

import numpy as np

from tencrop.evaluation.score_files import count_ranks
from tencrop.report.paired import Paired
from tencrop.report.run_comparison import Comparison, compare
from tencrop.report.score_sources import SavedScores

LABELS = np.array([0, 0, 0, 0, 1, 1, 2])
METADATA = {"protocol": '{"name": "center"}', "source_fingerprint": "ab", "weights_sha256": "cd"}


def saved(name: str, answers: list[int]) -> SavedScores:
    """Scores that are 1 for the answered class, and lower for the others, without ties."""
    scores = np.tile(np.array([0.3, 0.2, 0.1], np.float32), (7, 1))
    scores[np.arange(7), answers] = 1
    return SavedScores(Path(name), "softmax", LABELS, scores, count_ranks(scores, LABELS), METADATA, None)


def compared() -> Comparison:
    a = saved("a.safetensors", [0, 0, 0, 1, 1, 1, 0])
    b = saved("b.safetensors", [0, 1, 1, 0, 0, 1, 2])
    return compare(a, b, ks=[1, 2])


def test_flips_at_every_k():
    found = compared()
    assert [which.tolist() for which in found.wrong(1)] == [
        [False, False, False, True, False, False, True],
        [False, True, True, False, True, False, False],
    ]
    assert found.paired(1) == Paired(both_right=2, only_a_wrong=2, only_b_wrong=3, both_wrong=0)
    assert found.paired(2) == Paired(both_right=6, only_a_wrong=1, only_b_wrong=0, both_wrong=0)
    assert [which.tolist() for which in found.answered] == [[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 1, 2]]


def test_the_class_with_the_largest_difference_comes_first():
    # label, images, errors of A and of B: 100, 50 and 25 points apart
    assert compared().differences_of_classes(1) == [(2, 1, 1, 0), (1, 2, 0, 1), (0, 4, 1, 2)]
    assert compared().differences_of_classes(2) == [(2, 1, 1, 0)], "equal classes are left out"

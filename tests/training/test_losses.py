import math

import pytest
import torch

from tencrop.training.losses import cross_entropy, topk_errors


def errors(scores: list[float], label: int, k: int) -> bool:
    return bool(topk_errors(torch.tensor([scores]), torch.tensor([label]), k)[0])


def test_a_label_counts_as_found_among_the_k_best():
    scores = [0.1, 0.9, 0.5, 0.3]
    assert not errors(scores, 1, 1)
    assert errors(scores, 2, 1)
    assert not errors(scores, 2, 2)
    assert errors(scores, 0, 3)


def test_ties_count_against_the_label():
    assert errors([0.5, 0.5, 0.1], 0, 1)
    assert not errors([0.5, 0.5, 0.1], 0, 2)


def test_constant_scores_are_all_errors():
    labels = torch.arange(1000)
    assert topk_errors(torch.zeros(1000, 1000), labels, 1).all()
    assert topk_errors(torch.zeros(1000, 1000), labels, 5).all()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_an_error_wherever_it_stands(place):
    scores = [9.0, 0.0, 0.0]
    scores[place] = math.nan
    assert errors(scores, 0, 1)
    assert errors(scores, 0, 2)


def test_agrees_with_sorting_where_nothing_ties():
    scores = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(20, (200,), generator=torch.Generator().manual_seed(1))
    for k in (1, 5):
        found = (scores.topk(k).indices == labels[:, None]).any(1)
        assert torch.equal(topk_errors(scores, labels, k), ~found)


def test_label_smoothing_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    expected = -(0.9 * log_p[0] + 0.1 * log_p.mean())
    assert cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(expected.item())
    assert cross_entropy(logits, labels).item() == pytest.approx(-log_p[0].item())

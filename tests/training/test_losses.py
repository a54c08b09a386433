import math

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from tencrop.training.losses import (
    binary_cross_entropy,
    dominant_labels,
    mixed_cross_entropy,
    topk_errors,
    with_auxiliary,
)
from typed import present


def errors(scores: list[float], label: int, k: int) -> bool:
    return bool(topk_errors(torch.tensor([scores]), torch.tensor([label]), k)[0])


def test_a_label_is_correct_if_among_the_k_best():
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
def test_nan_in_any_score_is_an_error(place):
    scores = [9.0, 0.0, 0.0]
    scores[place] = math.nan
    assert errors(scores, 0, 1)
    assert errors(scores, 0, 2)


def test_topk_errors_agree_with_sorting_without_ties():
    scores = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(20, (200,), generator=torch.Generator().manual_seed(1))
    for k in (1, 5):
        found = (scores.topk(k).indices == labels[:, None]).any(1)
        assert torch.equal(topk_errors(scores, labels, k), ~found)


def test_label_smoothing_against_hand_computed_values():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    expected = -(0.9 * log_p[0] + 0.1 * log_p.mean())
    assert F.cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_mixed_cross_entropy_against_a_dense_target(label_smoothing):
    """Equals the cross-entropy against the dense target that timm's mixup_target builds."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels, others = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 4, 2, 3])
    weights = torch.tensor([1.0, 0.3, 0.5, 0.0, 0.9, 0.2], dtype=torch.float64)
    own, other = (
        torch.full((6, 5), label_smoothing / 5, dtype=torch.float64).scatter_(
            1, target[:, None], 1 - label_smoothing + label_smoothing / 5
        )
        for target in (labels, others)
    )
    target = weights[:, None] * own + (1 - weights[:, None]) * other
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    loss = mixed_cross_entropy(logits, labels, others, weights, label_smoothing=label_smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.15])
def test_binary_cross_entropy_agrees_with_timm(share, smoothing, threshold):
    """timm mixes a batch with its own reverse, the order that its Mixup uses."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 1, 4])  # samples 1 and 4 are mixed within their class
    loss = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
    targets = mixup_target(labels, 5, lam=share, smoothing=smoothing).double()
    options = {"label_smoothing": smoothing, "threshold": threshold}
    mixed = binary_cross_entropy(logits, labels, labels.flip(0), torch.full((6,), share), **options)
    assert mixed.item() == pytest.approx(loss(logits, targets).item(), rel=1e-6)  # timm's targets are float32
    alone = binary_cross_entropy(logits, labels, **options)
    assert alone.item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)


def test_the_threshold_is_compared_with_the_sum_of_the_shares():
    """Two images of one class, half each: with a threshold of 0.6 for each half, no class would be left."""
    logits, label, half = torch.zeros(1, 3), torch.tensor([1]), torch.tensor([0.5])
    logits[0, 1] = 2.0
    loss = binary_cross_entropy(logits, label, label, half, threshold=0.6)
    expected = (math.log1p(math.exp(-2.0)) + 2 * math.log(2)) / 3
    assert loss.item() == pytest.approx(expected)
    loss = binary_cross_entropy(logits, label, torch.tensor([0]), half, threshold=0.6)
    assert loss.item() == pytest.approx((math.log1p(math.exp(2.0)) + 2 * math.log(2)) / 3)


def test_dominant_labels():
    labels, others = torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7, 8])
    assert dominant_labels(labels, others, torch.tensor([1.0, 0.49, 0.5, 0.0])).tolist() == [0, 6, 2, 8]


def test_auxiliary_losses_are_added_with_their_weight():
    losses = [torch.tensor(value, requires_grad=True) for value in (2.0, 3.0, 5.0)]
    total = with_auxiliary(*losses, weight=0.3)
    total.backward()
    assert total.item() == pytest.approx(2.0 + 0.3 * (3.0 + 5.0))
    assert [round(present(loss.grad).item(), 6) for loss in losses] == [1.0, 0.3, 0.3]
    assert with_auxiliary(losses[0], weight=0.3) is losses[0]

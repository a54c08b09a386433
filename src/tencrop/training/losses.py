"""The training loss and the counting of errors, as pure functions of logits and labels.

Called by the classifier in training and validation; evaluation counts by the same rule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, weights: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy (nats) against targets `weights` [B] of the label and 1 - `weights` of the partner's.

    Each of the two labels is smoothed before, as in timm. The rest as in `cross_entropy`.
    """
    own, other = (
        F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        for target in (labels, partner_labels)
    )
    return torch.lerp(other, own, weights.to(logits.dtype)).mean()


def dominant_labels(labels: Tensor, partner_labels: Tensor, weights: Tensor) -> Tensor:
    """Of each mixed image's two labels the one with the larger share, int64 [B]; its own where they are even."""
    return torch.where(weights >= 0.5, labels, partner_labels)


def with_auxiliary(loss: Tensor, *auxiliary: Tensor, weight: float) -> Tensor:
    """The loss of a network's own logits plus `weight` times that of each auxiliary head's.

    GoogLeNet's weight is 0.3 (Szegedy et al. 2015, section 5). A network that has such heads returns, in training
    only, a tuple of logits, its own first, and says as its `auxiliary_weight` what they count.
    """
    return loss + weight * torch.stack(auxiliary).sum() if auxiliary else loss


def topk_errors(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is missed by the k best classes: bool [B] of scores [B, K] and labels int64 [B].

    A NaN among an image's scores is an error. Evaluation (evaluation/errors.py) is stricter: there, any score that is
    not finite makes the whole result an error message. Training must not wait for the device to raise one.
    """
    return (pessimistic_ranks(scores, labels) >= k) | scores.isnan().any(1)


def pessimistic_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many other classes score at least as high as the label: int32 [B] of scores [B, K] and labels int64 [B].

    This is the project's only top-k rule: a label is in the top k if its rank is below k. Ties count against the label,
    so that constant scores are an error of 100% (for k < K) and the result does not depend on how a sort breaks ties.
    """
    own = scores.gather(1, labels[:, None])
    # Comparing needs no sort. -1: the label's own class is in the count. With NaN every comparison is false.
    return (scores >= own).sum(1, dtype=torch.int32) - 1

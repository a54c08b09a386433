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


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy (nats) of logits [B, K] and labels int64 [B], a scalar.

    label_smoothing: the share of the target spread evenly over all K classes, the right one included
    (Szegedy et al. 2016, section 7).
    """
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def with_auxiliary(loss: Tensor, *auxiliary: Tensor, weight: float) -> Tensor:
    """The loss of a network's own logits plus `weight` times that of each auxiliary head's.

    GoogLeNet's weight is 0.3 (Szegedy et al. 2015, section 5). A network that has such heads returns, in training
    only, a tuple of logits, its own first, and says as its `auxiliary_weight` what they count.
    """
    return loss + weight * torch.stack(auxiliary).sum() if auxiliary else loss


def topk_errors(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is missed by the k best classes: bool [B] of scores [B, K] and labels int64 [B].

    A label is found when fewer than k other classes score at least as high: ties count against it, so that
    constant scores are 100% error (for k < K). A NaN among an image's scores is an error [17].
    """
    own = scores.gather(1, labels[:, None])
    num_rivals = (scores >= own).sum(1) - 1  # the label's own class is not a rival
    return (num_rivals >= k) | scores.isnan().any(1)

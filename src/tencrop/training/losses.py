"""The training loss and the counting of errors, as pure functions of logits and labels.

Called by the classifier in training and validation; evaluation counts by the same rule.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy (nats) of logits [B, K] and labels int64 [B], a scalar.

    label_smoothing: the share of the target spread evenly over all K classes, the right one included
    (Szegedy et al. 2016, section 7).
    """
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def topk_errors(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is missed by the k best classes: bool [B] of scores [B, K] and labels int64 [B].

    A label is found when fewer than k other classes score at least as high: ties count against it, so that
    constant scores are 100% error (for k < K). A NaN among an image's scores is an error [17].
    """
    own = scores.gather(1, labels[:, None])
    num_rivals = (scores >= own).sum(1) - 1  # the label's own class is not a rival
    return (num_rivals >= k) | scores.isnan().any(1)

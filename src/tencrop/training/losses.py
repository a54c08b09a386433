"""Training losses and top-k errors, as pure functions of logits and labels.

Evaluation (evaluation/errors.py) counts by the same top-k rule, but handles scores that are not finite differently:
training counts an image with a NaN score as an error; evaluation refuses any score that is NaN or infinite.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, weights: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy (nats) of mixed images: the target is weights * label + (1 - weights) * partner's label.

    logits: float [B, K]; labels, partner_labels: int64 [B]; weights: [B], in [0, 1]. label_smoothing: the share of each
    target that is spread evenly over all K classes, the right one included (Szegedy et al. 2016, section 7).
    """
    # Smoothing is linear in the target, so smoothing both labels before mixing equals smoothing the mixture, as timm's
    # Mixup does. Two losses on class indices avoid a dense [B, K] target.
    own, other = (
        F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        for target in (labels, partner_labels)
    )
    # Weighted image by image, before the mean: the weights of a batch may differ.
    return torch.lerp(other, own, weights.to(logits.dtype)).mean()


def dominant_labels(labels: Tensor, partner_labels: Tensor, weights: Tensor) -> Tensor:
    """The label with the larger share of each mixed image, int64 [B]; the image's own label if both have half."""
    return torch.where(weights >= 0.5, labels, partner_labels)


def with_auxiliary(loss: Tensor, *auxiliary: Tensor, weight: float) -> Tensor:
    """The main loss plus `weight` times the sum of the auxiliary heads' losses; all scalars.

    GoogLeNet's weight is 0.3 (Szegedy et al. 2015, section 5). In train mode, a network with auxiliary heads returns a
    tuple of logits with its main logits first, and has the weight as its attribute `auxiliary_weight`.
    """
    # The branch keeps the loss of ordinary networks bit for bit: nothing is multiplied or added.
    return loss + weight * torch.stack(auxiliary).sum() if auxiliary else loss


def topk_errors(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is not among the k best classes: bool [B] of scores [B, K] and labels int64 [B].

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

"""Training losses and top-k errors, as pure functions of logits and labels.

Evaluation (evaluation/errors.py) uses the same top-k rule but treats non-finite scores differently: training counts an
image with a NaN score as an error, whereas evaluation rejects every NaN or infinite score.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NO_RANK = 2**31 - 1  # an error for every k; the largest int32


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, weights: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy (nats) of mixed images with targets weights * label + (1 - weights) * partner's label.

    logits: float [B, K]; labels, partner_labels: int64 [B]; weights: [B], in [0, 1]. label_smoothing: the share of each
    target that is spread evenly over all K classes, including the correct one (Szegedy et al. 2016, section 7).
    """
    # Smoothing is linear in the target, so smoothing both labels before mixing equals smoothing the mixture, as timm's
    # Mixup does. Two losses on class indices avoid a dense [B, K] target.
    own, other = (
        F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        for target in (labels, partner_labels)
    )
    # Weight each image before taking the mean, because the images of a batch may have different weights.
    return torch.lerp(other, own, weights.to(logits.dtype)).mean()


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    threshold: float | None = None,
) -> Tensor:
    """Mean over samples and classes of one binary cross-entropy per class (nats), as in timm's BinaryCrossEntropy.

    Arguments as in `mixed_cross_entropy`; without partner_labels and weights, images are not mixed. threshold: targets
    above it become 1 and the others 0, so that an image mixed of two classes shows both in full (Wightman et al. 2021,
    section 2.2, unverified).
    """
    targets = _smoothed(labels, logits, label_smoothing)
    if partner_labels is not None and weights is not None:
        others = _smoothed(partner_labels, logits, label_smoothing)
        targets = torch.lerp(others, targets, weights.to(logits.dtype)[:, None])
    if threshold is not None:
        # After mixing: the shares of two images of one class add up before they are compared.
        targets = (targets > threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def _smoothed(labels: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Targets [B, K] of labels int64 [B]: a share `smoothing` is spread evenly over all K classes."""
    off = smoothing / logits.shape[1]
    return torch.full_like(logits, off).scatter_(1, labels[:, None], 1 - smoothing + off)


def dominant_labels(labels: Tensor, partner_labels: Tensor, weights: Tensor) -> Tensor:
    """For each mixed image, the label with the larger weight, int64 [B]; the image's own label if both are equal."""
    return torch.where(weights >= 0.5, labels, partner_labels)


def with_auxiliary(loss: Tensor, *auxiliary: Tensor, weight: float) -> Tensor:
    """The main loss plus `weight` times the sum of the auxiliary heads' losses; all scalars.

    GoogLeNet's weight is 0.3 (Szegedy et al. 2015, section 5). In train mode, a network with auxiliary heads returns a
    tuple of logits, main logits first; its attribute `auxiliary_weight` is the weight.
    """
    # Without auxiliary heads, the loss is returned unchanged, to the bit.
    return loss + weight * torch.stack(auxiliary).sum() if auxiliary else loss


def distillation_loss(label_loss: Tensor, logits: Tensor, teacher_labels: Tensor, *, alpha: float) -> Tensor:
    """Hard distillation: (1 - alpha) label_loss + alpha cross-entropy against the teacher's labels; a scalar, in nats.

    label_loss: the loss of the first head; logits: float [B, K], of the second; teacher_labels: int64 [B]. As in the
    authors' code, these are neither smoothed nor mixed (Touvron et al. 2021, "hard-label distillation").
    """
    return (1 - alpha) * label_loss + alpha * F.cross_entropy(logits, teacher_labels)


def topk_errors(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each image is a top-k error: bool [B], from scores [B, K] and labels int64 [B]."""
    return training_ranks(scores, labels) >= k


def training_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """The ranks that training counts errors from: `pessimistic_ranks`, and NO_RANK if a score of the image is NaN.

    Evaluation (evaluation/errors.py) is stricter: there, any non-finite score raises an exception. Training does not
    raise, since checking would wait for the device.
    """
    return pessimistic_ranks(scores, labels).masked_fill(scores.isnan().any(1), NO_RANK)


def pessimistic_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of other classes that score at least as high as the label: int32 [B], from [B, K] and int64 [B].

    This is the project's only top-k rule: a label is in the top k if its rank is below k. Ties count against the label,
    so that constant scores give an error of 100% (for k < K), and no result depends on how a sort breaks ties.
    """
    own = scores.gather(1, labels[:, None])
    # Counting needs no sort. The -1 excludes the label's own class. Comparisons with NaN are false.
    return (scores >= own).sum(1, dtype=torch.int32) - 1

"""Sums of the loss, the errors and the images on the device, for the training and the validation of a Classifier.

They are read only every log_every_steps steps: an .item() in every step would stall the GPU until its queue is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tencrop.distributed.collectives import all_reduce
from tencrop.training.losses import training_ranks


def no_errors() -> Tensor:
    """Sums of nothing, float64 [4]: of the loss, the top-1 errors, the top-5 errors and the images."""
    return torch.zeros(4, dtype=torch.float64)  # a float32 sum over many images would lose digits


def add_errors(counts: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add one micro-batch to `counts`: its mean loss, logits [B, K] and labels int64 [B].

    With precision bf16, training errors are those of logits rounded to bfloat16. Rounding makes ties, and ties count
    against the label: some tenths of a percentage point more than in float32. Validation logits are float32.
    """
    with torch.no_grad():
        num_images, ranks = torch.full_like(loss, len(labels)), training_ranks(logits, labels)
        counts += torch.stack([loss * num_images, *((ranks >= k).sum() for k in (1, 5)), num_images])


def read_errors(counts: Tensor) -> dict[str, float]:
    """Means over the images that all ranks have counted. Waits for the device; sets `counts` to 0.

    All ranks must call this at the same step.
    """
    total = all_reduce(counts)  # sums first, one division at the end: ranks may have counted unequal numbers
    counts.zero_()
    loss, top1, top5, num_images = total.tolist()
    assert num_images > 0
    return {
        "loss": loss / num_images,
        "top1_error": top1 / num_images,
        "top5_error": top5 / num_images,
        "num_images": int(num_images),
    }

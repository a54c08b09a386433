"""Detects a NaN or infinite loss or weight, on all ranks at the same step and without waiting for the device in it."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tencrop.distributed.collectives import all_reduce

# Larger than any step, so that a minimum over steps and ranks needs no flag for "none".
NO_STEP = 2**62


class Diverged(Exception):
    """A loss or a weight became NaN or infinite; the last checkpoint on disk is from before that."""


def record_nonfinite_loss(first_nonfinite_step: Tensor, loss: Tensor, *, step: int) -> None:
    """Keep the smallest step with a NaN or infinite loss in `first_nonfinite_step` (an int64 scalar, first NO_STEP)."""
    is_finite = loss.detach().abs() < math.inf  # torch.isfinite takes four operations for it
    step_or_none = torch.where(is_finite, NO_STEP, step)
    torch.minimum(first_nonfinite_step, step_or_none, out=first_nonfinite_step)


def check_losses(first_nonfinite_step: Tensor) -> None:
    """Raise Diverged, on all ranks, if a loss of any rank was NaN or infinite. Waits for the device."""
    step = int(all_reduce(first_nonfinite_step, dist.ReduceOp.MIN))
    if step < NO_STEP:
        raise Diverged(f"the loss is NaN or infinite at step {step}")


def check_weights_finite(model: nn.Module, *, step: int) -> None:
    """Raise Diverged if a weight or running statistic is NaN or infinite after optimizer step `step`.

    Weights are equal on all ranks, so all ranks raise.
    """
    floats = [value for value in model.state_dict().values() if value.is_floating_point()]
    # One fused kernel for the norms of all tensors, then one read.
    if not torch.stack(torch._foreach_norm(floats)).isfinite().all():
        raise Diverged(f"a weight is NaN or infinite after step {step}")

"""Collective operations that also work without a process group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_reduce(value: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """A new tensor, the sum (minimum, maximum) over all ranks of theirs; all must call this."""
    value = value.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value, operation)
    return value

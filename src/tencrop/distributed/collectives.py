"""Collective operations that also work without a process group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_reduce(value: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor over all ranks; returns a new tensor. Every rank must call this, or the others wait forever."""
    value = value.clone()  # dist.all_reduce works in place
    if dist.is_initialized() and dist.get_world_size() > 1:  # one process needs no group
        dist.all_reduce(value, operation)
    return value

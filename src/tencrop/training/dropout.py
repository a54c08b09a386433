"""Dropout that does not depend on the layout of the batch: draws for the global batch, of which each device takes rows.

Otherwise a run that continues on another number of devices would be another training. The classifier asks `draws_of`
once, and runs the network's forward pass in training inside `GlobalBatchDraws`. A batch that is not divided needs
neither: its draws are those of the global batch, as far as the tensors are contiguous or channels_last. torch draws in
the order of memory, and a slice or a transposed tensor has another one when the batch is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tencrop.config import Batches
from tencrop.models.fractalnet import FractalBlock, FractalNet
from tencrop.models.stochastic_depth import StochasticDepth

Draws = Literal["plain", "global", "separate"]

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
# These draw once for all samples: the same generator state in every micro-batch is enough.
ONCE_PER_BATCH = (StochasticDepth, FractalNet, FractalBlock)
# Largest number of factors that a layer draws for a global batch, on every device: 256 MB in float32. Dropout between
# ViT's tokens would need up to 10 GB.
MAX_FACTORS = 2**26


def draws_of(model: nn.Module, batches: Batches, *, image_size: int, is_compiled: bool = False) -> Draws:
    """How the network's random draws become those of the global batch.

    plain: as they are, because the batch is not divided or the network draws nothing for single samples.
    global: inside GlobalBatchDraws.
    separate: not at all, so every micro-batch must have a seed of its own. The network draws in a way that
        GlobalBatchDraws does not know (timm's attn_drop_rate), or more than MAX_FACTORS, or is compiled: compiled code
        has draws of its own, and a mode with other rows in each micro-batch would compile the network for each.

    Runs a forward pass on the meta device, as `nondeterministic_layers` does: shapes are computed, but no numbers.
    """
    # Three, so that the first dimension of another kind, such as tokens, is rarely a multiple.
    global_batch, num_images = batches.num_devices * batches.per_device, 3
    if global_batch == batches.micro_batch:
        return "plain"
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    images = torch.empty(num_images, 3, image_size, image_size, device="meta")
    # Ghost BatchNorm takes whole groups only, and synchronized BatchNorm tensors of a GPU only.
    off = [layer for layer in model.modules() if isinstance(layer, (_BatchNorm, *ONCE_PER_BATCH))]
    known, other = _KnownDraws(global_batch=global_batch, micro_batch=num_images, first_row=0), _OtherDraws()
    with _evaluating(off), torch.random.fork_rng(devices=[]), torch.no_grad(), other, known:
        torch.func.functional_call(model, on_meta, (images,))
    is_unknown = other.are_found or known.is_unknown
    if known.num_factors == 0 and not is_unknown:
        return "plain"
    return "separate" if is_unknown or is_compiled or known.num_factors > MAX_FACTORS else "global"


class GlobalBatchDraws(TorchFunctionMode):
    """Inside, torch's dropout and Tensor.bernoulli_ (timm's DropPath) draw as in a forward pass of the global batch.

    A tensor may have several rows for each sample, one after the other (Swin's windows). Every device draws for all
    samples and keeps its rows. At a global batch of 128, AlexNet draws a million numbers, which is little beside its
    step. A mode, and not other layers, because many networks of timm call F.dropout in their forward methods.
    """

    def __init__(self, *, global_batch: int, micro_batch: int, first_row: int):
        """first_row: the place of the micro-batch in the global batch."""
        super().__init__()
        self.global_batch, self.micro_batch, self.first_row = global_batch, micro_batch, first_row

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DROPOUTS:
            return self._dropout(func, *args, **(kwargs or {}))
        if func is Tensor.bernoulli_ and args[0].ndim > 0:
            return self._bernoulli(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return func(input, p, training, inplace)
        factors = self.rows(input, lambda ones: func(ones, p, True))
        return input.mul_(factors) if inplace else input * factors

    def _bernoulli(self, values: Tensor, p: float = 0.5) -> Tensor:
        return values.copy_(self.rows(values, lambda ones: ones.bernoulli_(p)))

    def rows(self, values: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows for `values` of what `draw` makes of ones for the global batch."""
        rows_per_sample, remainder = divmod(len(values), self.micro_batch)
        assert remainder == 0, (values.shape, self.micro_batch)
        # On a GPU, numbers are drawn in the order of memory, which must be that of a batch that is not divided.
        is_last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        shape = (self.global_batch * rows_per_sample, *values.shape[1:])
        ones = torch.ones(shape, dtype=values.dtype, device=values.device).contiguous(memory_format=layout)
        first = self.first_row * rows_per_sample
        # a view would keep the factors of all samples until the backward pass
        return draw(ones)[first : first + len(values)].clone()


class _KnownDraws(GlobalBatchDraws):
    """Counts the factors of the layer that draws most of them, and draws none."""

    num_factors = 0
    is_unknown = False  # whether the first dimension of some tensor is not that of the samples

    def rows(self, values: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        self.is_unknown |= len(values) % self.micro_batch != 0
        self.num_factors = max(self.num_factors, math.prod(values.shape) // self.micro_batch * self.global_batch)
        return torch.ones_like(values)


class _OtherDraws(TorchDispatchMode):
    """Records whether an operation draws random numbers."""

    are_found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.are_found |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@contextmanager
def _evaluating(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Put these layers, but not their children, in eval mode."""
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode

"""The exponential moving average of a network's weights, taken after every optimizer step. Called by the classifier."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, *, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model, over weights and running statistics; counters are copied."""
    pairs = list(zip(ema.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in floats], [its for _, its in floats], 1 - decay)
    for mine, its in pairs:
        if not mine.is_floating_point():
            mine.copy_(its)

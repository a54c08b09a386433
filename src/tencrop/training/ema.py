"""Exponential moving average (EMA) of a network's weights, updated after every optimizer step."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(decay: float, *, num_updates: int, warmup: str) -> float:
    """The decay of update `num_updates`, counted from 1. warmup: none | tf.

    tf is min(decay, (1 + n) / (10 + n)) with n optimizer steps, from tf.train.ExponentialMovingAverage: 0.18 at the
    first step, so that the initial weights have no share left after a few hundred.
    """
    return decay if warmup == "none" else min(decay, (1 + num_updates) / (10 + num_updates))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, *, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model, for weights and running statistics; integer counters are copied.

    With a constant decay of 0.9999, the average still contains 37% of the initial weights after 10,000 steps
    (0.9999 ** 10000); hence the warm-up of `ema_decay`.
    """
    # state_dict, not parameters: averaged weights need averaged BatchNorm statistics, or the two do not match.
    pairs = list(zip(ema.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
    # One fused kernel over all tensors. A loop would launch one each, 267 of them for ResNet-50.
    torch._foreach_lerp_([mine for mine, _ in floats], [its for _, its in floats], 1 - decay)
    for mine, its in pairs:
        if not mine.is_floating_point():
            mine.copy_(its)

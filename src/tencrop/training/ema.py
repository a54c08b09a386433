"""Exponential moving average (EMA) of a network's weights, updated after every optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def ema_decay(decay: float, *, num_updates: int, warmup: str) -> float:
    """The decay of update `num_updates`, counted from 1. warmup: none | tf.

    tf is min(decay, (1 + n) / (10 + n)) with n optimizer steps, from tf.train.ExponentialMovingAverage: 0.18 at the
    first step, so that the initial weights have no share left after a few hundred.
    """
    return decay if warmup == "none" else min(decay, (1 + num_updates) / (10 + num_updates))


class MovingAverage:
    """Averages the weights and running statistics of `model` in `average`, a copy of it; copies integer counters."""

    def __init__(self, average: nn.Module, model: nn.Module):
        # state_dict and not parameters: averaged weights need averaged BatchNorm statistics, or the two do not match.
        # It is asked once: for ResNet-50 it makes 320 new tensors, and an update needs those of both networks.
        self.pairs = list(zip(_held_tensors(average), _held_tensors(model), strict=True))

    @torch.no_grad()
    def update(self, *, decay: float) -> None:
        """average <- decay * average + (1 - decay) * model.

        With a constant decay of 0.9999, the average still contains 37% of the initial weights after 10,000 steps
        (0.9999 ** 10000); hence the warm-up of `ema_decay`.
        """
        pairs = [(mine[name], its[its_name]) for (mine, name), (its, its_name) in self.pairs]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        # One fused kernel over all tensors. A loop would launch one each, 267 of them for ResNet-50.
        torch._foreach_lerp_([mine for mine, _ in floats], [its for _, its in floats], 1 - decay)
        if counters:
            torch._foreach_copy_([mine for mine, _ in counters], [its for _, its in counters])


def _held_tensors(network: nn.Module) -> list[tuple[dict[str, Tensor], str]]:
    """For each tensor of the state dict, a module's own dict and the key in it.

    Not the tensors: moving a network to another device replaces its buffers.
    """
    held: list[tuple[Any, str]] = []
    for name in network.state_dict():
        prefix, _, key = name.rpartition(".")
        module = network.get_submodule(prefix)
        held.append((module._parameters if key in module._parameters else module._buffers, key))
    return held

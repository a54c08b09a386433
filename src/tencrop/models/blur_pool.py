"""Blur pooling: a fixed low-pass filter before strided convolutions, against aliasing (Zhang 2019).

This is BlurPoolConv2d of ffcv-imagenet (train_imagenet.py), for any network; factory.py applies it if model.blur_pool.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 16  # ffcv-imagenet's: the first convolution reads three channels of pixels and is left alone


def add_blur_pool(network: nn.Module) -> int:
    """Blur the input of every convolution with a stride above 1 and at least MIN_CHANNELS inputs; return their number.

    Names and shapes of the weights stay. Each such convolution gets a child `blur`, whose kernel is in the state dict:
    so a network without blurring refuses the weights of one with it, and the reverse.
    """
    # By stride and not by kernel size: a 1 x 1 convolution with stride 2, as in ResNet's shortcuts, skips three of four
    # pixels.
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 and layer.in_channels >= MIN_CHANNELS
    ]
    for layer in layers:
        layer.blur = Blur(layer.in_channels)
        # a hook, and not a module around the convolution as in ffcv-imagenet, which would rename its weights
        layer.register_forward_pre_hook(_blur_input)
    return len(layers)


class Blur(nn.Module):
    """[N, C, H, W] -> the same shape: each channel convolved with the binomial kernel [1, 2, 1] x [1, 2, 1] / 16.

    Pixels beyond the edge count as 0.
    """

    kernel: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        # a copy for each channel, which a depthwise convolution takes
        self.register_buffer("kernel", (torch.outer(line, line) / 16).repeat(num_channels, 1, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.kernel, padding=1, groups=len(self.kernel))


def _blur_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook; a function without state, so that deepcopy and pickle keep it."""
    assert isinstance(layer.blur, Blur)
    return layer.blur(inputs[0]), *inputs[1:]

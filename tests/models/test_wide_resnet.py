"""Wide residual networks are wide in their blocks; parameters as tables 7 and 8 print them are conf/sizes'."""

import timm
import torch
from torch import nn

import tencrop.models.wide_resnet  # noqa: F401  registers its names with timm
from typed import layer_at


def test_blocks_are_wider_and_the_first_convolution_is_not():
    with torch.device("meta"):
        network = timm.create_model("wide_resnet18_1_5")
    assert layer_at(network, "conv1", nn.Conv2d).out_channels == 64
    last = [layer_at(network, f"layer{number}.1.conv2", nn.Conv2d) for number in (1, 2, 3, 4)]
    assert [layer.out_channels for layer in last] == [96, 192, 384, 768]

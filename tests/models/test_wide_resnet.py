"""Wide residual networks are wide in their blocks; parameters as tables 7 and 8 print them are conf/sizes'."""

import timm
import torch

import tencrop.models.wide_resnet  # noqa: F401  registers its names with timm


def test_blocks_are_wider_and_the_first_convolution_is_not():
    with torch.device("meta"):
        network = timm.create_model("wide_resnet18_1_5")
    assert network.conv1.out_channels == 64
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [stage[-1].conv2.out_channels for stage in stages] == [96, 192, 384, 768]

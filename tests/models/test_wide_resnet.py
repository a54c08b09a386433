"""Wide residual networks have the parameters that tables 7 and 8 print."""

import pytest
import timm
import torch

import tencrop.models.wide_resnet  # noqa: F401  registers its names with timm

MILLIONS = {
    "resnet18": 11.7, "wide_resnet18_1_5": 25.9, "wide_resnet18_2": 45.6, "wide_resnet18_3": 101.8,
    "resnet34": 21.8, "wide_resnet34_1_5": 48.6, "wide_resnet34_2": 86.0,
    "resnet50": 25.6, "resnet101": 44.5, "resnet152": 60.2, "wide_resnet50_2": 68.9,
}  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_as_printed(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == MILLIONS[name]


def test_blocks_are_wider_and_the_first_convolution_is_not():
    with torch.device("meta"):
        network = timm.create_model("wide_resnet18_1_5")
    assert network.conv1.out_channels == 64
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [stage[-1].conv2.out_channels for stage in stages] == [96, 192, 384, 768]

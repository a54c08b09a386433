"""ResNeXt's cardinalities keep the complexity of table 2, and are wired as timm's 32 x 4d is."""

from itertools import pairwise

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck
from torch import nn

from tencrop.models import resnext
from typed import layer_at

# cardinality, maps of a group, width of the grouped convolution in conv2 (table 2)
TABLE_2 = [(1, 64, 64), (2, 40, 80), (4, 24, 96), (8, 14, 112), (32, 4, 128)]
NAMES = (
    *(f"resnext{depth}_{cardinality}x{width}d" for depth in (50, 101) for cardinality, width, _ in TABLE_2),
    "resnext101_2x64d", "resnext101_1x100d", "resnext101_64x4d",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_strides(name):
    cardinality, width = map(int, name.removesuffix("d").split("_")[1].split("x"))
    with torch.device("meta"):
        network = timm.create_model(name)
    for number in range(4):
        for index, block in enumerate(network.get_submodule(f"layer{number + 1}").children()):
            assert isinstance(block, Bottleneck)
            stride = 2 if index == 0 and number > 0 else 1
            assert (block.conv1.stride[0], block.conv2.stride[0]) == (1, stride)
            assert block.conv2.groups == cardinality
            assert block.conv2.in_channels == block.conv2.out_channels == cardinality * width * 2**number
            assert (block.downsample is not None) == (index == 0)  # shortcuts of type B


@pytest.mark.parametrize(("cardinality", "width", "maps"), TABLE_2)
@pytest.mark.parametrize("depth", [50, 101])
def test_a_block_of_conv2_has_70_thousand_parameters(depth, cardinality, width, maps):
    """C * (256 d + 9 d^2 + 256 d), which table 2 prints as about 70k."""
    with torch.device("meta"):
        block = layer_at(timm.create_model(f"resnext{depth}_{cardinality}x{width}d"), "layer1.1", Bottleneck)
    weights = sum(layer.weight.numel() for layer in (block.conv1, block.conv2, block.conv3))
    assert block.conv2.out_channels == maps
    assert weights == cardinality * (256 * width + 9 * width**2 + 256 * width) and round(weights, -4) == 70_000


@pytest.mark.parametrize("name", ["resnext50_1x64d", "resnext50_32x4d"])
def test_without_shortcuts_it_has_no_projections(name):
    """Four, of 64 to 256, 256 to 512, 512 to 1024 and 1024 to 2048 maps, with BatchNorm."""
    with torch.device("meta"):
        plain, residual = timm.create_model(f"{name}_plain"), timm.create_model(name)
        assert plain(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    fewer = set(residual.state_dict()) - set(plain.state_dict())
    assert all("downsample" in key for key in fewer) and len(fewer) == 4 * 6
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (residual, plain)]
    widths = (64, 256, 512, 1024, 2048)
    assert counts[0] - counts[1] == sum(n * m + 2 * m for n, m in pairwise(widths))


def test_a_plain_block_with_zeroed_last_scale_gives_zeros():
    torch.manual_seed(0)
    block, maps = resnext.PlainBottleneck(16, 4, cardinality=2, base_width=32).eval(), torch.randn(2, 16, 5, 5)
    expected = block.bn1(block.conv1(maps)).relu()
    expected = block.bn2(block.conv2(expected)).relu()
    assert torch.equal(block(maps), block.bn3(block.conv3(expected)).relu()) and block(maps).any()
    nn.init.zeros_(layer_at(block, "bn3", nn.BatchNorm2d).weight)
    assert not block(maps).any()

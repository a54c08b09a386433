"""The four DenseNets of table 1: maps and sides after every block and transition."""

import pytest
import timm
import torch
from timm.models.densenet import DenseLayer
from torch import nn

import tencrop.models.densenet  # noqa: F401  registers its name with timm
from typed import layer_at

BLOCKS = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
    "densenet264": (6, 12, 64, 48),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_stages_of_table_1(name):
    shapes = []
    with torch.device("meta"):
        network = timm.create_model(name)
        for layer in network.get_submodule("features").children():
            layer.register_forward_hook(lambda _layer, _inputs, output: shapes.append(tuple(output.shape[1:])))
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    expected, maps, side = [(64, 112, 112), (64, 112, 112), (64, 56, 56)], 64, 56
    for number, count in enumerate(BLOCKS[name]):
        maps += 32 * count
        expected.append((maps, side, side))
        if number < 3:
            maps, side = maps // 2, side // 2
            expected.append((maps, side, side))
    assert shapes == [*expected, (maps, side, side)]  # the last BatchNorm


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_count_to_the_name_but_for_264(name):
    """Convolutions and the output layer; table 1's own numbers of layers make DenseNet-264 one of 265."""
    with torch.device("meta"):
        network = timm.create_model(name)
    depth = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    assert depth == int(name.removeprefix("densenet")) + (name == "densenet264")
    for layer in network.modules():
        if isinstance(layer, DenseLayer):
            assert layer_at(layer, "conv1", nn.Conv2d).out_channels == 4 * 32
            assert layer_at(layer, "conv2", nn.Conv2d).out_channels == 32

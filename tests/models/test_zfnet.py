"""ZFNet's map sizes as figure 3 prints them, its parameters, and the sizes of its tables."""

import pytest
import torch
from torch import nn

from tencrop.models import zfnet

PARAMETERS = [14_208, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000]


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_sides_and_parameters_of_every_layer():
    sides = []
    with torch.device("meta"):
        network = zfnet.zfnet()
        for layer in network.features:
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                layer.register_forward_hook(lambda _layer, _inputs, output: sides.append(tuple(output.shape[1:])))
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert sides == [
        (96, 110, 110), (96, 55, 55), (256, 26, 26), (256, 13, 13),
        (384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6),
    ]  # fmt: skip
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [num_parameters(layer) for layer in layers] == PARAMETERS


def test_normalization_follows_the_pooling_of_layers_1_and_2():
    names = list(dict(zfnet.zfnet(img_size=64, width=0.0625).features.named_children()))
    assert names[:8] == [f"{kind}{number}" for number in (1, 2) for kind in ("conv", "relu", "pool", "norm")]
    assert [name for name in names if name.startswith("norm")] == ["norm1", "norm2"]


def test_parameters_without_layers_and_with_narrow_hidden_layers():
    with torch.device("meta"):
        without = zfnet.zfnet(remove_layers=(3, 4, 6, 7))
        assert num_parameters(without) == 14_208 + 614_656 + (256 * 256 * 9 + 256) + (9216 * 1000 + 1000)
        assert without(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
        narrow = zfnet.zfnet(hidden_units=2048)
        assert num_parameters(narrow.classifier) == 9216 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 1000 + 1000


@pytest.mark.parametrize("img_size", [63, 64, 96, 128, 192, 224, 225])
def test_the_first_hidden_layer_fits_the_resolution(img_size):
    with torch.device("meta"):
        network = zfnet.zfnet(img_size=img_size, num_classes=7)
        assert network(torch.empty(1, 3, img_size, img_size)).shape == (1, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": 62}, "img_size=62"),
        ({"num_kernels": [96, 256]}, "num_kernels"),
        ({"remove_layers": [1]}, "remove_layers"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        zfnet.zfnet(**options)

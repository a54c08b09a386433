"""Network in Network's parameters, map sizes and initial weights, as the Caffe Model Zoo has them."""

import torch
from torch import nn

from tencrop.models import nin
from typed import present


def test_parameters_and_sides_of_every_layer():
    sides = []
    with torch.device("meta"):
        network = nin.nin()
        for layer in network.features:
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                layer.register_forward_hook(lambda _layer, _inputs, output: sides.append(tuple(output.shape[1:3])))
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    expected = [(96, 54)] * 3 + [(96, 27)] + [(256, 27)] * 3 + [(256, 13)] + [(384, 13)] * 3 + [(384, 6)]
    assert sides == [*expected, (1024, 6), (1024, 6), (1000, 6)]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert counts == [
        34_944, 9312, 9312, 614_656, 65_792, 65_792,
        885_120, 147_840, 147_840, 3_539_968, 1_049_600, 1_025_000,
    ]  # fmt: skip
    assert round(4 * sum(counts) / 2**20) == 29  # the zoo's "29MB model"


def test_initial_weights():
    torch.manual_seed(0)
    small = {"conv1", "conv3", "cccp8"}
    for name, layer in nin.nin(width=0.5).features.named_children():
        if isinstance(layer, nn.Conv2d):
            assert abs(layer.weight.std() / (0.01 if name in small else 0.05) - 1) < 0.05, name
            assert not present(layer.bias).any()


def test_logits_are_the_averages_of_the_rectified_class_maps():
    torch.manual_seed(0)
    network = nin.nin(num_classes=7, width=0.125).eval()
    maps = network.features(torch.randn(2, 3, 64, 64))
    assert maps.min() >= 0 and maps.shape[1] == 7
    images = torch.randn(2, 3, 96, 128)  # any resolution
    assert torch.equal(network(images), network.features(images).mean((2, 3)))


def test_dropout_is_before_the_last_block():
    names = list(dict(nin.nin(width=0.125).features.named_children()))
    assert names[names.index("drop") - 1 : names.index("drop") + 2] == ["pool3", "drop", "conv4"]

"""All-CNN's parameters and map sizes, and that nothing in it is fixed to a resolution."""

import torch
from torch import nn

from tencrop.models import allcnn


def test_parameters_and_sides_of_every_layer():
    sides = []
    with torch.device("meta"):
        network = allcnn.allcnn()
        for layer in network.features:
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _layer, _inputs, output: sides.append(tuple(output.shape[1:3])))
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert sides == [
        (96, 55), (96, 55), (96, 27), (256, 27), (256, 27), (256, 13),
        (384, 13), (384, 13), (384, 6), (1024, 6), (1024, 6), (1000, 6),
    ]  # fmt: skip
    counts = [sum(p.numel() for p in layer.parameters()) for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert counts == [
        34_944, 9312, 83_040, 614_656, 65_792, 590_080,
        885_120, 147_840, 1_327_488, 3_539_968, 1_049_600, 1_025_000,
    ]  # fmt: skip
    assert sum(counts) < 10e6  # "less than 10 million parameters"
    assert not [layer for layer in network.modules() if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d | nn.Linear)]


def test_every_convolution_is_rectified_and_the_ninth_is_dropped_out():
    names = list(dict(allcnn.allcnn(width=0.125).features.named_children()))
    assert names[0] == "pad" and names[names.index("drop9") - 1] == "relu9"
    names.remove("drop9")
    assert names[1:] == [f"{kind}{number}" for number in range(1, 13) for kind in ("conv", "relu")]


def test_any_resolution_is_averaged():
    network = allcnn.allcnn(num_classes=7, width=0.125).eval()
    images = torch.randn(2, 3, 96, 128)
    assert network(images).shape == (2, 7)
    assert torch.equal(network(images), network.features(images).mean((2, 3)))

"""Order of recorded calls, and the layers that figures show by default."""

import pytest
import torch
from timm import create_model
from torch import nn

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.visualization.trace import NotApplicable, classifying_layer, last_maps, trace


def test_calls_are_listed_as_they_begin_with_their_shapes() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(16, 5))
    calls = trace(network, torch.zeros(1, 3, 4, 4))
    assert [(call.name, call.output) for call in calls] == [
        ("0", (1, 4, 2, 2)), ("0.0", (1, 4, 2, 2)), ("0.1", (1, 4, 2, 2)), ("1", (1, 16)), ("2", (1, 5)),
    ]  # fmt: skip
    assert calls[0].input == (1, 3, 4, 4) and calls[4].input == (1, 16)


@pytest.mark.parametrize(
    ("name", "size", "maps", "classifier"),
    [
        ("resnet18", 64, "layer4", "fc"),
        ("lenet5", 32, "s4", "output"),
        ("vgg_a", 64, "features", "classifier.fc8"),
        ("nin", 128, "features", "features.cccp8"),
        ("densenet121", 64, "features", "classifier"),
    ],
)
def test_last_maps_and_classifier(name, size, maps, classifier) -> None:
    if name == "vgg_a":
        network = create_model(name, width=0.1, img_size=size)
    else:
        network = create_model(name, width=0.1) if name == "nin" else create_model(name)
    calls = trace(network, torch.zeros(1, 3, size, size))
    assert last_maps(calls).name == maps
    assert classifying_layer(calls).name == classifier


def test_a_network_without_maps_raises_has_none() -> None:
    with pytest.raises(NotApplicable, match="outputs maps"):
        last_maps(trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2)))


def test_maps_with_channels_last_are_refused() -> None:
    network = create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1), embed_dim=24
    )
    with pytest.raises(NotApplicable, match="channels last"):
        last_maps(trace(network, torch.rand(1, 3, 64, 64)))

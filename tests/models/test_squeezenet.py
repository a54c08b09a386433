"""SqueezeNet's sides and parameters, torchvision's with the same weights, and the bypasses."""

import pytest
import torch
import torchvision
from torch import nn

from tencrop.models import squeezenet
from typed import layer_at, present

# sides after these layers for images of 227; the paper's table 1 as its files give it
SHAPES = {
    "conv1": (96, 111, 111), "pool1": (96, 55, 55), "fire2": (128, 55, 55), "fire3": (128, 55, 55),
    "fire4": (256, 55, 55), "pool4": (256, 27, 27), "fire5": (256, 27, 27), "fire6": (384, 27, 27),
    "fire7": (384, 27, 27), "fire8": (512, 27, 27), "pool8": (512, 13, 13), "fire9": (512, 13, 13),
}  # fmt: skip
PARAMETERS = {
    "conv1": 14_208, "fire2": 11_920, "fire3": 12_432, "fire4": 45_344, "fire5": 49_440,
    "fire6": 104_880, "fire7": 111_024, "fire8": 188_992, "fire9": 197_184,
}  # fmt: skip


def num_parameters(layer):
    return sum(parameter.numel() for parameter in layer.parameters())


def test_sides_and_parameters_of_every_layer():
    maps, network = torch.empty(1, 3, 227, 227, device="meta"), squeezenet.squeezenet_1_0().to("meta")
    shapes = {}
    for name, layer in network.features.named_children():
        maps = layer(maps)
        shapes[name] = tuple(maps.shape[1:])
    assert shapes == SHAPES
    counts = {name: num_parameters(layer) for name, layer in network.features.named_children()}
    assert {name: count for name, count in counts.items() if count} == PARAMETERS
    assert num_parameters(network.classifier) == 513_000
    assert round(4 * num_parameters(network) / 2**20, 1) == 4.8  # "4.8MB"


@pytest.mark.parametrize("version", ["1_0", "1_1"])
def test_outputs_equal_torchvisions(version):
    torch.manual_seed(0)
    ours = getattr(squeezenet, f"squeezenet_{version}")(class_padding=0, num_classes=20).eval()
    theirs = torchvision.models.get_model(f"squeezenet{version}", weights=None, num_classes=20).eval()
    mapped = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(mapped))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        logits = ours(images)
        assert logits.any() and torch.equal(logits, theirs(images))


def test_the_padding_of_the_class_maps_puts_rectified_biases_around_them():
    torch.manual_seed(0)
    padded = squeezenet.squeezenet_1_0(num_classes=5, width=0.125).eval()
    plain = squeezenet.squeezenet_1_0(num_classes=5, width=0.125, class_padding=0).eval()
    with torch.no_grad():
        bias = present(layer_at(padded, "classifier.conv10", nn.Conv2d).bias)
        bias.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0]))
        plain.load_state_dict(padded.state_dict())
        images = torch.randn(2, 3, 227, 227)
        border = bias.relu() * (15**2 - 13**2)
        torch.testing.assert_close(padded(images), (plain(images) * 13**2 + border) / 15**2)
    assert layer_at(squeezenet.squeezenet_1_1(width=0.125), "classifier.conv10", nn.Conv2d).padding == (0, 0)


def test_a_simple_bypass_is_around_every_other_module():
    network = squeezenet.squeezenet_1_0(bypass="simple", width=0.125)
    fires = {name: layer for name, layer in network.features.named_children() if name.startswith("fire")}
    assert [name for name, fire in fires.items() if fire.bypass is not None] == ["fire3", "fire5", "fire7", "fire9"]
    plain = squeezenet.squeezenet_1_0(width=0.125).get_submodule("features.fire3")
    plain.load_state_dict(fires["fire3"].state_dict())
    maps = torch.randn(2, 16, 5, 5)
    assert torch.equal(fires["fire3"](maps), plain(maps) + maps)
    assert num_parameters(network) == num_parameters(squeezenet.squeezenet_1_0(width=0.125))  # "4.8MB" both


def test_a_complex_bypass_has_a_convolution_where_the_maps_grow():
    network = squeezenet.squeezenet_1_0(bypass="complex")
    bypasses = {name: fire.bypass for name, fire in network.features.named_children() if name.startswith("fire")}
    shapes = {name: tuple(layer.weight.shape) for name, layer in bypasses.items() if isinstance(layer, nn.Conv2d)}
    assert shapes == {
        "fire2": (128, 96, 1, 1),
        "fire4": (256, 128, 1, 1),
        "fire6": (384, 256, 1, 1),
        "fire8": (512, 384, 1, 1),
    }
    assert all(isinstance(bypasses[f"fire{number}"], nn.Identity) for number in (3, 5, 7, 9))
    assert num_parameters(network) == 1_589_672
    maps = torch.randn(2, 96, 5, 5)
    with torch.no_grad():
        fire2 = layer_at(network, "features.fire2", squeezenet.Fire)
        with_bypass = fire2(maps)
        bypass, fire2.bypass = present(fire2.bypass), None
        torch.testing.assert_close(with_bypass, fire2(maps) + bypass(maps))


def test_initial_weights_are_the_authors():
    torch.manual_seed(0)
    network = squeezenet.squeezenet_1_0(bypass="complex")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            std = 0.01 if name == "classifier.conv10" else layer.weight[0].numel() ** -0.5
            assert abs(layer.weight.std() / std - 1) < 0.1 and not present(layer.bias).any(), name


@pytest.mark.parametrize(("options", "words"), [({"version": "2.0"}, "version='2.0'"), ({"bypass": "both"}, "bypass")])
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        squeezenet.squeezenet_1_0(**options)

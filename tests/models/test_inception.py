"""BN-Inception's modules against figure 5, and Inception v3 with its auxiliary head."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from tencrop.models import inception
from typed import layer_at

# figure 5's output of each module, its two of stride 2 behind their stride; ours add up to it
SHAPES = {
    "pool1": (64, 56, 56), "conv2": (192, 56, 56), "pool2": (192, 28, 28), "inception3a": (256, 28, 28),
    "inception3b": (320, 28, 28), "inception3c": (576, 14, 14), "inception4a": (576, 14, 14),
    "inception4b": (576, 14, 14), "inception4c": (576, 14, 14), "inception4d": (576, 14, 14),
    "inception4e": (1024, 7, 7), "inception5a": (1024, 7, 7), "inception5b": (1024, 7, 7),
}  # fmt: skip


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def shapes_of(network):
    maps, shapes = torch.empty(1, 3, 224, 224, device="meta"), {}
    for name, layer in network.to("meta").features.named_children():
        maps = layer(maps)
        shapes[name] = tuple(maps.shape[1:])
    return shapes


def test_maps_of_figure_5():
    shapes = shapes_of(inception.bn_inception())
    assert {name: shapes[name] for name in SHAPES} == SHAPES


def test_the_other_interpretation_of_figure_5_contradicts_its_sums():
    network = inception.bn_inception(projections=128)
    shapes = shapes_of(network)
    sums = [shapes[f"inception{name}"][0] for name in ("4c", "4d", "4e", "5a")]
    assert sums == [608, 608, 1056, 1024] and num_parameters(network) == 11_278_528


def test_parameters():
    """Section 4.2 states 13.6 million, which neither interpretation of figure 5 gives."""
    network = inception.bn_inception()
    assert num_parameters(network) == 11_188_288
    weights = [layer.weight.numel() for layer in network.features.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(weights) == 10_143_384 and weights[:2] == [24 * 49, 24 * 64]


@pytest.mark.parametrize(("name", "pool"), [("3a", nn.AvgPool2d), ("4e", nn.MaxPool2d), ("5b", nn.MaxPool2d)])
def test_pooling_averages_or_takes_maxima(name, pool):
    network = inception.bn_inception(width=0.0625)
    branch = layer_at(network, f"features.inception{name}.branches.pool", nn.Sequential)
    assert isinstance(branch[0], pool)
    assert len(branch) == (1 if name == "4e" else 2)


def test_a_module_of_stride_2_passes_the_pooled_maps_through():
    torch.manual_seed(0)
    module = inception.Inception(4, inception.Widths(0, 3, 4, 5, 6, 0), stride=2, maximum=True, activation="relu")
    maps = torch.randn(2, 4, 8, 8)
    output = module(maps)
    assert output.shape == (2, 4 + 6 + 4, 4, 4)
    assert torch.equal(output[:, 10:], nn.functional.max_pool2d(maps, 3, stride=2, ceil_mode=True))


def test_averages_exclude_the_padding():
    pool = inception.bn_inception(width=0.0625).get_submodule("features.inception3a.branches.pool.0")
    assert torch.equal(pool(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 5, 5))


def test_every_convolution_is_normalized_before_the_nonlinearity():
    layers = list(inception.bn_inception(width=0.0625, activation="sigmoid").features.modules())
    kinds = [type(layer) for layer in layers if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Sigmoid | nn.ReLU)]
    assert kinds[0] is nn.Conv2d  # the depthwise part of the separable one
    assert kinds[1:] == [nn.Conv2d, nn.BatchNorm2d, nn.Sigmoid] * ((len(kinds) - 1) // 3)
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))
    with pytest.raises(ValueError, match="activation='tanh'"):
        inception.bn_inception(activation="tanh")


def test_any_resolution_is_averaged():
    network = inception.bn_inception(num_classes=7, width=0.0625).eval()
    assert network(torch.randn(2, 3, 96, 128)).shape == (2, 7)


def test_inception_v3_gives_auxiliary_logits_in_training_only():
    with torch.device("meta"):
        network = inception.inception_v3_aux(num_classes=7)
        images = torch.empty(2, 3, 299, 299)
        logits, auxiliary = network(images)
        assert logits.shape == auxiliary.shape == (2, 7) and network.auxiliary_weight == 0.4
        assert network.eval()(images).shape == network(torch.empty(2, 3, 224, 224)).shape == (2, 7)
        assert inception.inception_v3_aux(auxiliary_weight=0.3).auxiliary_weight == 0.3


def test_inception_v3_is_timms_in_evaluation():
    torch.manual_seed(0)
    ours, theirs = inception.inception_v3_aux(num_classes=7), timm.create_model("inception_v3", num_classes=7)
    found = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not found.missing_keys and {key.split(".")[0] for key in found.unexpected_keys} == {"AuxLogits"}
    images = torch.randn(1, 3, 139, 139)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_parameters_of_inception_v3():
    """ "Less than 25 million"; MobileNet's table 10 prints 23.2."""
    with torch.device("meta"):
        network = inception.inception_v3_aux()
        torchvisions = torchvision.models.inception_v3(weights=None, init_weights=False)
    assert num_parameters(network.AuxLogits) == 3_326_696
    assert num_parameters(network) - 3_326_696 == 23_834_568
    assert [p.shape for p in network.state_dict().values()] == [p.shape for p in torchvisions.state_dict().values()]

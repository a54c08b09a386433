"""GoogLeNet's modules, its auxiliary heads, its first convolution either way; table 1's sizes are conf/sizes'."""

from functools import partial

import pytest
import torch
from torch import nn

from tencrop.models import googlenet
from tencrop.models.alexnet import LocalResponseNorm
from typed import layer_at, present

small = partial(googlenet.googlenet_2014, width=0.0625, img_size=80)
# table 1's output of the modules
OUTPUTS = {
    "3a": (256, 28, 28), "3b": (480, 28, 28), "4a": (512, 14, 14), "4b": (512, 14, 14), "4c": (512, 14, 14),
    "4d": (528, 14, 14), "4e": (832, 14, 14), "5a": (832, 7, 7), "5b": (1024, 7, 7),
}  # fmt: skip


def num_parameters(layer):
    return sum(parameter.numel() for parameter in layer.parameters())


def test_outputs_of_every_module_of_table_1():
    maps, network = torch.empty(1, 3, 224, 224, device="meta"), googlenet.googlenet_2014().to("meta")
    outputs = {}
    for name, layer in network.features.named_children():
        maps = layer(maps)
        outputs[name.removeprefix("inception")] = tuple(maps.shape[1:])
    assert {name: outputs[name] for name in OUTPUTS} == OUTPUTS


def test_the_printed_first_row_is_a_separable_convolution():
    network = small(separable_stem=True)
    layers = [layer for layer in network.features[:2].modules() if isinstance(layer, nn.Conv2d)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(24, 1, 7, 7), (4, 24, 1, 1)]
    assert network.features[:2](torch.randn(1, 3, 80, 80)).shape == (1, 4, 40, 40)


def test_normalization_follows_the_first_and_precedes_the_second_pooling_with_caffes_constants():
    network = small()
    names = list(dict(network.features.named_children()))
    assert names[:7] == ["conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "pool2"]
    norms = [layer for layer in network.modules() if isinstance(layer, LocalResponseNorm)]
    maps = torch.rand(1, 4, 2, 2, dtype=torch.float64) * 100
    expected = torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)(maps)
    assert len(norms) == 2
    for norm in norms:
        torch.testing.assert_close(norm(maps), expected, rtol=1e-12, atol=0)
    assert not [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_a_module_concatenates_four_branches():
    torch.manual_seed(0)
    module = googlenet.Inception(8, googlenet.Widths(2, 3, 4, 5, 6, 7)).double()
    maps = torch.randn(2, 8, 5, 5, dtype=torch.float64)

    def conv(layer, maps):
        return torch.relu(nn.functional.conv2d(maps, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2))

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
    assert [layer.weight.shape[-1] for layer in layers.values()] == [1, 1, 3, 1, 5, 1]
    one, three_reduce, three, five_reduce, five, project = layers.values()
    pooled = nn.functional.max_pool2d(maps, 3, stride=1, padding=1)
    branches = [
        conv(one, maps),
        conv(three, conv(three_reduce, maps)),
        conv(five, conv(five_reduce, maps)),
        conv(project, pooled),
    ]
    torch.testing.assert_close(module(maps), torch.cat(branches, 1))
    assert module.num_outputs == 2 + 4 + 6 + 7


def test_the_auxiliary_heads_read_4a_and_4d_in_training_only():
    network = small(num_classes=7, drop_rate=0.0, auxiliary_drop_rate=0.0)
    images = torch.randn(2, 3, 80, 80)
    read = {}
    for name, head in network.heads.items():
        head.register_forward_hook(lambda _head, inputs, output, name=name: read.update({name: (inputs[0], output)}))
    logits, first, second = network(images)
    assert [tuple(output.shape) for output in (logits, first, second)] == [(2, 7)] * 3
    maps = images
    for name, layer in network.features.named_children():
        maps = layer(maps)
        if name in read:
            assert torch.equal(read.pop(name)[0], maps)
    assert not read
    assert torch.equal(network.eval()(images), logits)
    assert network(torch.randn(1, 3, 100, 130)).shape == (1, 7)


def test_an_auxiliary_head_as_printed():
    """Averages of 5 x 5 with stride 3 to 4 x 4, 128 kernels of 1 x 1, 1024 units, dropout of 70%."""
    with torch.device("meta"):
        network = googlenet.googlenet_2014()
        assert network.heads.get_submodule("inception4a.pool")(torch.empty(1, 512, 14, 14)).shape == (1, 512, 4, 4)
        assert [output.shape for output in network(torch.empty(2, 3, 224, 224))] == [(2, 1000)] * 3
    for head, num_maps in zip(network.heads.values(), (512, 528), strict=True):
        layers = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        assert [tuple(layer.weight.shape) for layer in layers] == [(128, num_maps, 1, 1), (1024, 2048), (1000, 1024)]
        assert layer_at(head, "drop", nn.Dropout).p == 0.7
    assert num_parameters(network.heads) == 6_379_728
    assert network.auxiliary_weight == 0.3 and layer_at(network, "classifier.drop", nn.Dropout).p == 0.4


def test_no_heads_without_a_weight():
    network = googlenet.googlenet_2014(num_classes=7, width=0.0625, auxiliary_weight=0)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_initial_weights_are_caffes():
    torch.manual_seed(0)
    network = googlenet.googlenet_2014(width=0.5, num_classes=10)
    classifiers = [network.classifier.fc, *(head.fc2 for head in network.heads.values())]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            assert abs(layer.weight.std() * fan_in**0.5 - 1) < 0.1
            assert layer.weight.abs().max() <= (3 / fan_in) ** 0.5
            assert (present(layer.bias) == (0.0 if layer in classifiers else 0.2)).all()


@pytest.mark.parametrize("img_size", [79, 96, 128, 224, 225, 256])
def test_the_auxiliary_heads_fit_the_resolution(img_size):
    with torch.device("meta"):
        network = googlenet.googlenet_2014(img_size=img_size, num_classes=7)
        assert [output.shape for output in network(torch.empty(2, 3, img_size, img_size))] == [(2, 7)] * 3


def test_images_too_small_for_the_heads_are_refused():
    with pytest.raises(ValueError, match=r"img_size=78.*at least 79"):
        googlenet.googlenet_2014(img_size=78)

"""AlexNet's layers, the unusual ones against naive loops, and its variants; printed sizes are conf/sizes'."""

import itertools
import math

import pytest
import torch
from torch import nn

from tencrop.models import alexnet
from typed import layer_at, present


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def outputs_of(network, images, kinds):
    """The outputs of all layers of these kinds, in order."""
    outputs = []
    for layer in network.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    network(images)
    return outputs


def test_kernels_of_every_layer_are_those_of_section_3_5():
    with torch.device("meta"):
        network = alexnet.alexnet_2012()
    shapes = [tuple(layer.weight.shape) for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert shapes == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    hidden = [tuple(layer.weight.shape) for layer in network.classifier if isinstance(layer, nn.Linear)]
    assert hidden == [(4096, 256 * 6 * 6), (4096, 4096), (1000, 4096)]


def test_names_of_the_features_are_the_order_of_section_3_5():
    with torch.device("meta"):
        names = " ".join(dict(alexnet.alexnet_2012().features.named_children()))
    assert names == ("pad conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5")


@pytest.mark.parametrize(("options", "std"), [({}, 0.01), ({"init_std": 0.04}, 0.04)], ids=str)
def test_the_papers_initialization(options, std):
    torch.manual_seed(0)
    network = alexnet.alexnet_2012(width=0.25, **options)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bias = 1.0 if name.rsplit(".")[-1] in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert torch.all(present(layer.bias) == bias), name
            assert abs(layer.weight.std() / std - 1) < 0.05 and abs(layer.weight.mean()) < 0.1 * std, name


@pytest.mark.parametrize("num_towers", [1, 2])
@pytest.mark.parametrize("alpha_over_n", [False, True])
def test_response_normalization_against_the_papers_formula(num_towers, alpha_over_n):
    torch.manual_seed(0)
    maps = torch.randn(2, 14, 3, 2, dtype=torch.float64) * 50
    output = alexnet.LocalResponseNorm(num_towers, alpha_over_n=alpha_over_n)(maps)
    k, n, alpha, beta = 2, 5, 1e-4 / (5 if alpha_over_n else 1), 0.75
    num_kernels = 14 // num_towers
    for tower in range(num_towers):
        a = maps[:, tower * num_kernels : (tower + 1) * num_kernels]
        for i in range(num_kernels):
            total = sum(a[:, j] ** 2 for j in range(max(0, i - n // 2), min(num_kernels - 1, i + n // 2) + 1))
            expected = a[:, i] / (k + alpha * total) ** beta
            torch.testing.assert_close(output[:, tower * num_kernels + i], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_maps", [2, 11])
@pytest.mark.parametrize("n", [3, 4, 5])
def test_response_normalization_against_torchs_with_its_gradient(n, num_maps):
    torch.manual_seed(0)
    maps, gradient = torch.randn(3, num_maps, 6, 5) * 30, torch.randn(3, num_maps, 6, 5)
    ours = alexnet.LocalResponseNorm(n=n, k=1.0, alpha_over_n=True)
    torchs = nn.LocalResponseNorm(n, alpha=1e-4, beta=0.75, k=1.0)
    inputs = [maps.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(its) for norm, its in zip((ours, torchs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=0)
    for output in outputs:
        output.backward(gradient)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-6)
    assert not ours.state_dict()


def test_the_gradient_of_response_normalization_is_that_of_its_output():
    torch.manual_seed(0)
    maps = torch.randn(2, 6, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(alexnet.LocalResponseNorm(2, n=4, alpha=0.1), maps)


def test_response_normalization_does_not_overflow_in_half_precision():
    maps = torch.full((1, 8, 1, 1), 1000.0)
    norm = alexnet.LocalResponseNorm()
    half = norm(maps.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), norm(maps), rtol=1e-3, atol=0)


def test_overlapping_pooling_against_a_loop_and_same_sizes_without():
    torch.manual_seed(0)
    maps = torch.randn(1, 96, 55, 55)
    overlapping = alexnet.alexnet_2012(width=0.0625).get_submodule("features.pool1")(maps)
    separate = alexnet.alexnet_2012(width=0.0625, overlapping=False).get_submodule("features.pool1")(maps)
    assert overlapping.shape == separate.shape == (1, 96, 27, 27)
    for row in range(27):
        for column in range(27):
            top, left = 2 * row, 2 * column
            window = maps[0, :, top : top + 3, left : left + 3]
            assert torch.equal(overlapping[0, :, row, column], window.amax((1, 2)))
            assert torch.equal(separate[0, :, row, column], window[:, :2, :2].amax((1, 2)))


def naive_convolution(maps, weight, bias, padding, sources):
    """Unit by unit: the sum over the maps sources(kernel) that kernel k reads, over its rows and its columns."""
    padded = nn.functional.pad(maps, (padding, padding, padding, padding))
    side = weight.shape[-1]
    num_rows, num_columns = padded.shape[-2] - side + 1, padded.shape[-1] - side + 1
    output = torch.empty(len(weight), num_rows, num_columns, dtype=maps.dtype)
    for kernel in range(len(weight)):
        for row in range(num_rows):
            for column in range(num_columns):
                window = padded[0, list(sources(kernel)), row : row + side, column : column + side]
                output[kernel, row, column] = bias[kernel] + (window * weight[kernel]).sum()
    return output


@torch.no_grad()
def test_two_towers_are_two_networks_that_meet_in_layer_3():
    """ "The kernels of layer 3 take input from all kernel maps in layer 2. However, kernels in layer 4 take input only
    from those kernel maps in layer 3 which reside on the same GPU" (section 3.2); so do those of layers 2 and 5."""
    torch.manual_seed(0)
    network = alexnet.alexnet_2012(img_size=67, width=0.0625).double()
    maps_read = {"conv2": 6, "conv3": 16, "conv4": 24, "conv5": 24}
    for name, num_maps in maps_read.items():
        layer = getattr(network.features, name)
        num_kernels = len(layer.weight)

        def sources(kernel, name=name, num_maps=num_maps, num_kernels=num_kernels):
            if name == "conv3":
                return range(num_maps)
            return range(num_maps // 2) if kernel < num_kernels // 2 else range(num_maps // 2, num_maps)

        maps = torch.randn(1, num_maps, 5, 5, dtype=torch.float64)
        expected = naive_convolution(maps, layer.weight, layer.bias, layer.padding[0], sources)
        torch.testing.assert_close(layer(maps)[0], expected)
    conv1, conv3 = (layer_at(network, f"features.{name}", nn.Conv2d) for name in ("conv1", "conv3"))
    assert conv1.groups == conv3.groups == 1
    # before layer 3 a change of one tower's kernels leaves the other tower as it was, normalized and pooled
    to_pool2 = network.features[: list(dict(network.features.named_children())).index("pool2") + 1]
    images = torch.randn(1, 3, 67, 67, dtype=torch.float64)
    before = to_pool2(images)
    conv1.weight[:3] += 1
    after = to_pool2(images)
    assert torch.equal(before[:, 8:], after[:, 8:]) and not torch.equal(before[:, :8], after[:, :8])


def test_dropout_keeps_units_unscaled_and_halves_them_in_testing():
    torch.manual_seed(0)
    dropout, activations = alexnet.ScaledDropout(0.5), torch.rand(100, 100) + 1
    trained = dropout(activations)
    kept = trained != 0
    assert torch.equal(trained[kept], activations[kept]) and abs(kept.float().mean() - 0.5) < 0.02
    dropout.eval()
    assert torch.equal(dropout(activations), activations * 0.5)
    assert torch.equal(alexnet.ScaledDropout(0.0)(activations), activations)
    with pytest.raises(ValueError, match="drop_rate=1"):
        alexnet.ScaledDropout(1)


def test_dropped_units_take_no_part_in_the_backward_pass_either():
    torch.manual_seed(0)
    activations = (torch.rand(100) + 1).requires_grad_()
    outputs = alexnet.ScaledDropout(0.5)(activations)
    outputs.sum().backward()
    assert torch.equal(present(activations.grad), (outputs != 0).float())


@pytest.mark.parametrize("drop_rate", [0.5, 0.25])
def test_half_the_outputs_are_the_mean_over_all_networks_that_dropout_samples(drop_rate):
    """Exactly so for what the next layer sums: all 2^8 masks of eight units, each with its probability."""
    torch.manual_seed(0)
    hidden, next_layer = torch.rand(8, dtype=torch.float64), nn.Linear(8, 3).double()
    expected = torch.zeros(3, dtype=torch.float64)
    for mask in itertools.product((0.0, 1.0), repeat=8):
        probability = math.prod(1 - drop_rate if kept else drop_rate for kept in mask)
        expected += probability * next_layer(hidden * torch.tensor(mask, dtype=torch.float64))
    outputs = next_layer(alexnet.ScaledDropout(drop_rate).eval()(hidden))
    torch.testing.assert_close(outputs, expected)


def test_224_is_227_with_three_zero_columns_and_rows():
    """The windows are those of cuda-convnet: 1 + ceil((224 - 11) / 4) = 55, the last beyond the edge by 3."""
    network = alexnet.alexnet_2012(width=0.0625, drop_rate=0.0).eval()
    images = torch.randn(1, 3, 224, 224)
    padded = torch.zeros(1, 3, 227, 227)
    padded[:, :, :224, :224] = images
    assert torch.equal(network(images), network(padded))
    pad = network.get_submodule("features.pad")
    assert pad(images).shape == pad(padded).shape == (1, 3, 227, 227)


def test_one_tower_has_half_the_kernels_but_for_the_last_convolution():
    with torch.device("meta"):
        network = alexnet.alexnet_2012_one_tower()
    layers = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [48, 128, 192, 192, 256]
    assert all(layer.groups == 1 for layer in layers)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"six_convolutions": True}, 256 * 128 * 9 + 256),
        # without the layer, and with the next one reading what the layer read
        ({"remove_layer": 2}, -(256 * 48 * 25 + 256) + 384 * (96 - 256) * 9),
        ({"remove_layer": 3}, -(384 * 256 * 9 + 384) + 384 * (128 - 192) * 9),
        ({"remove_layer": 4}, -(384 * 192 * 9 + 384)),
        ({"remove_layer": 5}, -(256 * 192 * 9 + 256) + 4096 * (384 - 256) * 6 * 6),
    ],
    ids=str,
)
def test_a_sixth_convolution_and_removed_layers_at_full_size(options, more):
    with torch.device("meta"):
        network = alexnet.alexnet_2012(**options)
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
        assert num_parameters(network) - num_parameters(alexnet.alexnet_2012()) == more


def test_each_convolution_has_a_hundredth_of_the_parameters():
    """Section 1: "each of which contains no more than 1% of the model's parameters"; so it is in whole percents, but
    layers 3 and 4 have 1.45% and 1.09%."""
    with torch.device("meta"):
        network = alexnet.alexnet_2012()
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    shares = [num_parameters(layer) / num_parameters(network) for layer in convolutions]
    assert [f"{share:.2%}" for share in shares] == ["0.06%", "0.50%", "1.45%", "1.09%", "0.73%"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"remove_layer": 1}, "remove_layer=1"),
        ({"img_size": 63}, "img_size=63"),
        ({"img_size": 8}, "img_size=8"),
        ({"img_size": 35, "overlapping": False}, "img_size=35.*36"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        alexnet.alexnet_2012(**options)


@pytest.mark.parametrize("img_size", [64, 67, 96, 128, 224, 227, 256])
def test_the_first_hidden_layer_fits_the_resolution(img_size):
    for overlapping in (True, False):
        with torch.device("meta"):
            network = alexnet.alexnet_2012(img_size=img_size, overlapping=overlapping, num_classes=7)
            assert network(torch.empty(1, 3, img_size, img_size)).shape == (1, 7)


def test_the_smallest_image_of_separate_pooling():
    assert alexnet.alexnet_2012(img_size=36, overlapping=False, width=0.0625)(torch.randn(1, 3, 36, 36)).shape == (
        1,
        1000,
    )


@pytest.mark.parametrize("options", [{}, {"activation": "tanh"}, {"lrn": True}, {"init_std": 0.01}], ids=str)
def test_the_four_layers_of_figure_1(options):
    torch.manual_seed(0)
    network = alexnet.alexnet_2012_figure1(**options)
    assert num_parameters(network) == 2432 + 25_632 + 51_264 + 10_250
    maps = outputs_of(network, torch.randn(2, 3, 32, 32), (nn.MaxPool2d, nn.AvgPool2d))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 16), (32, 8, 8), (64, 4, 4)]


@pytest.mark.parametrize("img_size", [12, 28, 32, 64])
def test_figure_1_at_other_resolutions(img_size):
    network = alexnet.alexnet_2012_figure1(num_classes=3, img_size=img_size)
    assert network(torch.randn(1, 3, img_size, img_size)).shape == (1, 3)

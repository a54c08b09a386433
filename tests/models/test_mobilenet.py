"""MobileNet against table 1 and the numbers of tables 4 to 9: parameters and multiply-adds of the whole grid."""

import pytest
import torch
from torch import nn

from tencrop.models import mobilenet

PARAMETERS = {
    "mobilenet_v1_100": (4_231_976, 4.2), "mobilenet_v1_075": (2_585_560, 2.6), "mobilenet_v1_050": (1_331_592, 1.3),
    "mobilenet_v1_025": (470_072, 0.5),
    "mobilenet_v1_conv": (29_294_088, 29.3), "mobilenet_v1_shallow": (2_887_976, 2.9),
}  # fmt: skip
# millions of multiply-adds that the tables print, of the 16 networks and the two compared
MULT_ADDS = {
    ("mobilenet_v1_100", 224): 569, ("mobilenet_v1_100", 192): 418, ("mobilenet_v1_100", 160): 290,
    ("mobilenet_v1_100", 128): 186, ("mobilenet_v1_075", 224): 325, ("mobilenet_v1_050", 224): 149,
    ("mobilenet_v1_050", 160): 76, ("mobilenet_v1_025", 224): 41, ("mobilenet_v1_shallow", 224): 307,
}  # fmt: skip


def build(name, **options):
    with torch.device("meta"):
        return getattr(mobilenet, name)(**options)


def outputs_of(network, img_size):
    """Layer and shape of its output, of every convolution and the linear layer."""
    outputs = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _inputs, output: outputs.append((layer, output.shape[1:])))
    network(torch.empty(1, 3, img_size, img_size, device="meta"))
    return outputs


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_as_printed(name):
    network = build(name)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert (count, round(count / 1e6, 1)) == PARAMETERS[name]


def test_table_9_counts_no_batch_norm():
    network = build("mobilenet_v1_050")
    weights = sum(p.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters())
    assert round(weights / 1e6, 2) == 1.32 and round(PARAMETERS["mobilenet_v1_050"][0] / 1e6, 2) == 1.33


@pytest.mark.parametrize(("name", "img_size"), MULT_ADDS)
def test_multiply_adds_to_within_one_million_of_the_printed(name, img_size):
    """The paper rounds 568.7 up and cuts 290.7 down."""
    layers = outputs_of(build(name), img_size)
    total = sum(layer.weight.numel() * (shape[1] * shape[2] if len(shape) == 3 else 1) for layer, shape in layers)
    assert abs(total / 1e6 - MULT_ADDS[name, img_size]) < 1


def test_conv_mobilenet_is_printed_without_its_output_layer():
    layers = outputs_of(build("mobilenet_v1_conv"), 224)
    total = sum(layer.weight.numel() * shape[1] * shape[2] for layer, shape in layers[:-1])
    assert round(total / 1e6) == 4866 and round((total + 1024 * 1000) / 1e6) == 4867


@pytest.mark.parametrize("name", ["mobilenet_v1_100", "mobilenet_v1_075", "mobilenet_v1_050", "mobilenet_v1_025"])
@pytest.mark.parametrize("img_size", [224, 192, 160, 128])
def test_layers_of_table_1_in_the_whole_grid(name, img_size):
    width = int(name[-3:]) / 100
    maps = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    scales = [2, 2, 4, 4, 8, 8, *[16] * 6, 32, 32]
    expected = [(int(32 * width), img_size // 2)]
    for previous, output, scale in zip(maps, maps[1:], scales[1:], strict=False):
        expected += [(int(width * previous), img_size // scale), (int(width * output), img_size // scale)]
    *convolutions, (_, classes) = outputs_of(build(name), img_size)
    assert [(shape[0], shape[1]) for _, shape in convolutions] == expected and classes == (1000,)
    kinds = [(layer.kernel_size[0], layer.groups == layer.in_channels > 1) for layer, _ in convolutions]
    assert kinds == [(3, False), *[(3, True), (1, False)] * 13]


def test_every_convolution_is_normalised_and_rectified():
    for module in build("mobilenet_v1_100").features:
        assert [type(layer) for layer in module] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] and module.conv.bias is None


def test_a_separable_convolution_against_a_loop():
    torch.manual_seed(0)
    network = mobilenet.MobileNet(3, width=0.125).double().eval()
    depthwise, pointwise = network.features.depthwise1.conv, network.features.pointwise1.conv
    maps = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    output = pointwise(depthwise(maps))
    padded = nn.functional.pad(maps, (1, 1, 1, 1))
    for row in range(5):
        for column in range(5):
            window = padded[0, :, row : row + 3, column : column + 3]
            filtered = torch.stack([(window[k] * depthwise.weight[k, 0]).sum() for k in range(4)])
            for kernel in range(pointwise.out_channels):
                expected = (pointwise.weight[kernel, :, 0, 0] * filtered).sum()
                torch.testing.assert_close(output[0, kernel, row, column], expected)

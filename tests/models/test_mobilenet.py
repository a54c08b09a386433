"""MobileNet against table 1 in the whole grid; what tables 4 to 9 print is conf/sizes' (tests/complexity)."""

import pytest
import torch
from torch import nn

from tencrop.models import mobilenet
from typed import layer_at


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


def test_every_convolution_is_normalized_and_rectified():
    for module in build("mobilenet_v1_100").features:
        assert [type(layer) for layer in module] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] and module.conv.bias is None


def test_a_separable_convolution_against_a_loop():
    torch.manual_seed(0)
    network = mobilenet.MobileNet(3, width=0.125).double().eval()
    depthwise = layer_at(network, "features.depthwise1.conv", nn.Conv2d)
    pointwise = layer_at(network, "features.pointwise1.conv", nn.Conv2d)
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

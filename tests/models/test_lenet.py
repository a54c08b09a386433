"""LeNet-5's parameters layer by layer, and its unusual layers against naive loops."""

import pytest
import torch

from tencrop.models import lenet

PARAMETERS = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "output": 0}


def test_parameters_of_every_layer():
    network = lenet.LeNet5()
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert counts == PARAMETERS
    assert sum(counts.values()) == 60_000


def test_only_the_first_channel_is_read():
    images = torch.randn(2, 3, 32, 32)
    other = torch.cat([images[:, :1], torch.randn(2, 2, 32, 32)], dim=1)
    network = lenet.LeNet5()
    assert torch.equal(network(images), network(other))


def test_subsampling_against_a_naive_loop():
    layer = lenet.Subsampling(2).double()
    torch.nn.init.normal_(layer.coefficient)
    torch.nn.init.normal_(layer.bias)
    maps = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    output = layer(maps)
    for channel in range(2):
        for row in range(2):
            for column in range(2):
                total = maps[0, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].sum()
                expected = lenet.squash(total * layer.coefficient[channel] + layer.bias[channel])
                torch.testing.assert_close(output[0, channel, row, column], expected)


def test_sparse_convolution_against_single_kernels():
    layer = lenet.SparseConvolution().double()
    maps = torch.randn(1, 6, 14, 14, dtype=torch.float64)
    kernels = iter(layer.weight)
    for output, sources in enumerate(lenet.C3_INPUTS):
        expected = sum(torch.nn.functional.conv2d(maps[:, s : s + 1], next(kernels)[None, None]) for s in sources)
        torch.testing.assert_close(layer(maps)[:, output], (expected + layer.bias[output])[:, 0])


def test_output_is_minus_the_squared_distance_to_the_pictures():
    codes = lenet.digit_codes()
    assert codes.shape == (10, 84) and len({tuple(code.tolist()) for code in codes}) == 10
    logits = lenet.RadialBasis(codes)(codes)
    assert torch.equal(logits.argmax(1), torch.arange(10)) and torch.all(logits.diagonal() == 0)


def test_lenet5_is_for_ten_digits():
    with pytest.raises(ValueError, match="use lenet5_dense"):
        lenet.LeNet5(num_classes=1000)
    assert lenet.LeNet5Dense(num_classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_parameters_of_the_dense_form():
    assert sum(p.numel() for p in lenet.LeNet5Dense().parameters()) == 61_706

"""Both LeNets, their unusual layers against naive loops; what is printed of 1998's sizes is conf/sizes'."""

import pytest
import torch

from tencrop.models import lenet
from typed import present

# Which maps of S2 (rows) each map of C3 (columns) reads, drawn as the paper's Table I; from memory, unverified
TABLE_I = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""
C3_COLUMNS = list(zip(*(line.split() for line in TABLE_I.strip().splitlines()), strict=True))


def num_units(network, images):
    """Units of the layers by name, of one image."""
    units = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: units.update({name: output.numel()}))
    network(images)
    return units


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


def test_c3_against_single_kernels():
    layer = lenet.LeNet5().c3.double()
    maps = torch.randn(1, 6, 14, 14, dtype=torch.float64)
    kernels = iter(layer.weight)
    for output, column in enumerate(C3_COLUMNS):
        sources = [source for source, mark in enumerate(column) if mark == "X"]
        expected = sum(torch.nn.functional.conv2d(maps[:, s : s + 1], next(kernels)[None, None]) for s in sources)
        torch.testing.assert_close(layer(maps)[:, output], (expected + present(layer.bias)[output])[:, 0])


def test_output_is_minus_the_squared_distance_to_the_pictures():
    codes = lenet.digit_codes()
    assert codes.shape == (10, 84) and len({tuple(code.tolist()) for code in codes}) == 10
    logits = lenet.RadialBasis(codes)(codes)
    assert torch.equal(logits.argmax(1), torch.arange(10)) and torch.all(logits.diagonal() == 0)


def test_lenet5_is_for_ten_digits():
    with pytest.raises(ValueError, match="use lenet5_dense"):
        lenet.LeNet5(num_classes=1000)
    assert lenet.LeNet5Dense(num_classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("img_size", [32, 33, 48, 64])
def test_the_hidden_layer_fits_the_resolution(img_size):
    for build in (lenet.lenet5, lenet.lenet5_dense):
        assert build(img_size=img_size)(torch.randn(2, 1, img_size, img_size)).shape == (2, 10)
        with pytest.raises(ValueError, match="img_size=31"):
            build(img_size=31)


def test_units_connections_and_parameters_of_1989():
    """Of every layer; the sums are conf/sizes': "1256 units, 64,660 connections, and 9760 independent parameters"."""
    network = lenet.LeNet1989()
    units = num_units(network, torch.randn(1, 1, 16, 16))
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    shared = {"h1": counts["h1"] + counts.pop("h1_biases"), "h2": counts["h2"] + counts.pop("h2_biases")}
    assert counts | shared == {"h1": 1068, "h2": 2592, "h3": 5790, "output": 310}
    inputs = {"h1": network.h1.weight[0].numel(), "h2": 8 * network.h2.weight[0].numel(),
              "h3": network.h3.in_features, "output": network.output.in_features}  # fmt: skip
    connections = {name: units[name] * (inputs[name] + 1) for name in inputs}
    assert connections == {"h1": 19_968, "h2": 38_592, "h3": 5790, "output": 310}


def test_every_map_of_h2_reads_eight_and_is_read_evenly():
    assert len(lenet.H2_INPUTS) == 12 and all(len(set(sources)) == 8 for sources in lenet.H2_INPUTS)
    assert [sum(source in sources for sources in lenet.H2_INPUTS) for source in range(12)] == [8] * 12


def test_layers_of_1989_against_a_naive_loop():
    """H1 and H2 unit by unit: 5 x 5 inputs, two pixels apart, -1 beyond the edge, a bias of its own."""
    torch.manual_seed(0)
    network = lenet.LeNet1989().double()
    torch.nn.init.normal_(network.h1_biases.bias)
    torch.nn.init.normal_(network.h2_biases.bias)
    image = torch.rand(16, 16, dtype=torch.float64) * 2 - 1

    def neighbors(plane, row, column):
        height, width = plane.shape
        places = [(2 * row + i, 2 * column + j) for i in range(-2, 3) for j in range(-2, 3)]
        inside = [0 <= i < height and 0 <= j < width for i, j in places]
        return torch.stack([plane[p] if ok else plane.new_tensor(-1.0) for p, ok in zip(places, inside, strict=True)])

    h1, h2 = image.new_empty(12, 8, 8), image.new_empty(12, 4, 4)
    for number in range(12):
        for row in range(8):
            for column in range(8):
                total = network.h1.weight[number].flatten() @ neighbors(image, row, column)
                h1[number, row, column] = lenet.squash(total + network.h1_biases.bias[number, row, column])
    kernels = network.h2.weight.unflatten(0, (12, 8))
    for number, sources in enumerate(lenet.H2_INPUTS):
        for row in range(4):
            for column in range(4):
                total = sum(
                    kernel.flatten() @ neighbors(h1[source], row, column)
                    for kernel, source in zip(kernels[number], sources, strict=True)
                )
                h2[number, row, column] = lenet.squash(total + network.h2_biases.bias[number, row, column])
    outputs = lenet.squash(network.output(lenet.squash(network.h3(h2.flatten()))))
    logits = network(image.expand(1, 3, 16, 16))[0]
    torch.testing.assert_close(logits, 4 * outputs)
    # minus the squared distances to targets of 1 for the class and -1 for the others, but for a common constant
    distances = (outputs - (2 * torch.eye(10, dtype=torch.float64) - 1)).square().sum(1)
    torch.testing.assert_close(logits.log_softmax(0), (-distances).log_softmax(0))


def test_other_resolutions_of_1989():
    assert lenet.lenet_1989(num_classes=7, img_size=32)(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="img_size=18"):
        lenet.lenet_1989(img_size=18)

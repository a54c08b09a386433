"""VGG's kernels and initial weights; its layers and parameters as printed are conf/sizes' (tests/complexity)."""

import pytest
import torch
from torch import nn

from tencrop.models import vgg
from tencrop.models.alexnet import LocalResponseNorm
from typed import layer_at


def test_c_has_small_kernels_at_the_end_of_blocks_3_to_5():
    with torch.device("meta"):
        convolutions = [(n, c) for n, c in vgg.vgg_c().features.named_children() if isinstance(c, nn.Conv2d)]
    small = [name for name, convolution in convolutions if convolution.kernel_size == (1, 1)]
    assert small == ["conv3_3", "conv4_3", "conv5_3"]


def test_a_lrn_normalizes_once_after_the_first_relu():
    with torch.device("meta"):
        layers = list(vgg.vgg_a_lrn().features)
    assert [index for index, layer in enumerate(layers) if isinstance(layer, LocalResponseNorm)] == [2]


def test_initial_weights():
    torch.manual_seed(0)
    normal = vgg.vgg_a(width=0.25, img_size=64, init="normal")
    glorot = vgg.vgg_a(width=0.25, img_size=64)
    printed = vgg.vgg_a(width=0.25, img_size=64, init="normal", init_std=0.1)
    weight = {net: layer_at(net, "features.conv5_1", nn.Conv2d).weight for net in (normal, glorot, printed)}
    assert abs(weight[normal].std() / 0.01 - 1) < 0.02  # how we read the printed variance of 10^-2
    assert abs(weight[printed].std() / 0.1 - 1) < 0.02  # its word
    assert abs(weight[glorot].abs().max() / (6 / (2 * 128 * 9)) ** 0.5 - 1) < 0.01
    for network in (normal, glorot):
        assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("img_size", [32, 64, 100, 224, 256])
def test_the_first_hidden_layer_fits_the_resolution(img_size):
    with torch.device("meta"):
        network = vgg.vgg_a(img_size=img_size, num_classes=7)
        assert network(torch.empty(1, 3, img_size, img_size)).shape == (1, 7)


@pytest.mark.parametrize(("options", "words"), [({"img_size": 31}, "img_size=31"), ({"init": "he"}, "init='he'")])
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        vgg.vgg_a(**options)

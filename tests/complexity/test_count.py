"""Counts against torch's FLOP counter, brute force, the papers' numbers for LeNet and EfficientNet's scaling rule."""

import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tencrop.models.factory  # noqa: F401  registers our networks
from tencrop.complexity.count import count

NETWORKS = {
    "alexnet_2012": 224,
    "googlenet_2014": 224,
    "resnet18_a": 224,
    "densenet121": 96,
    "mobilenet_v1_025": 160,
    "fractalnet34": 64,
    "squeezenet_1_1": 227,
    "efficientnet_b0": 224,
    "convnext_atto": 224,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "botnet26t_256": 256,
    "torchvision/vit_b_16": 224,
    "torchvision/inception_v3": 299,
}


def build(name, device="meta"):
    with torch.device(device):
        if name == "torchvision/inception_v3":
            return torchvision.models.get_model("inception_v3", weights=None, init_weights=False)
        if name.startswith("torchvision/"):
            return torchvision.models.get_model(name.removeprefix("torchvision/"), weights=None)
        return timm.create_model(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_adds_are_half_of_what_torch_counts_and_no_parameter_is_missed(name):
    network, size = build(name), NETWORKS[name]
    found = count(network, size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, size, size, device="meta"))
    assert 2 * found.mult_adds == counter.get_total_flops() > 0
    assert found.parameters + found.training_parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "heads"), [("googlenet_2014", 6_379_728), ("inception_v3_aux", 3_326_696)])
def test_parameters_of_auxiliary_heads_are_counted_separately(name, heads):
    assert count(build(name), NETWORKS.get(name, 299)).training_parameters == heads


def test_lenets_layers_as_the_papers_count_them():
    found = count(build("lenet5"), 32)
    rows = {layer.name: (layer.units, layer.parameters, layer.connections) for layer in found.layers}
    assert rows == {
        "c1": (4704, 156, 122_304),
        "s2": (1176, 12, 5_880),
        "c3": (1600, 1_516, 151_600),
        "s4": (400, 32, 2_000),
        "c5": (120, 48_120, 48_120),
        "f6": (84, 10_164, 10_164),
        "output": (10, 0, 840),
    }
    assert (found.parameters, found.connections) == (60_000, 340_908)
    first = count(build("lenet_1989"), 16)
    assert (first.parameters, first.connections, first.units) == (9_760, 64_660, 1_000)


class Small(nn.Module):
    """Grouped, strided and dilated convolutions, two poolings by one module, a product and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.fc = nn.Linear(6, 5, bias=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, images):
        maps = self.pool(self.pool(self.norm(self.conv(torch.cat([images, images[:, :1]], 1))) * self.scale))
        tokens = maps.flatten(2)
        return self.fc((tokens @ tokens.transpose(1, 2) @ tokens).mean(2))


def brute_force_connections(conv, size):
    """Every pair of an output unit and an input that its kernel multiplies, one by one; outside of the image too."""
    height, width = (
        (size + 2 * conv.padding[a] - conv.dilation[a] * (conv.kernel_size[a] - 1) - 1) // conv.stride[a] + 1
        for a in (0, 1)
    )
    pairs = 0
    for _unit in range(height * width):
        for output in range(conv.out_channels):
            group = output // (conv.out_channels // conv.groups)
            for source in range(conv.in_channels):
                if source // (conv.in_channels // conv.groups) == group:
                    pairs += conv.kernel_size[0] * conv.kernel_size[1]
    return (height, width), pairs


def test_layers_of_a_small_network_against_brute_force():
    network = Small()
    found = count(network, 12)
    rows = {layer.name: layer for layer in found.layers}
    assert list(rows) == ["conv", "norm", "scale", "pool", "pool(2)", "(product)", "fc"]
    sides, pairs = brute_force_connections(network.conv, 12)
    conv = rows["conv"]
    assert conv.output == (6, *sides) and conv.mult_adds == pairs and conv.connections == pairs + conv.units
    assert (conv.parameters, conv.biases, conv.groups) == (6 * 2 * 3 * 2 + 6, 6, 2)
    num_tokens = rows["pool(2)"].units // 6
    assert rows["pool"].connections == 4 * rows["pool"].units
    assert rows["(product)"].mult_adds == 2 * 6 * 6 * num_tokens
    assert rows["fc"].mult_adds == rows["fc"].parameters == 30
    assert (rows["norm"].parameters, rows["scale"].parameters, found.training_parameters) == (12, 6, 12)
    assert found.units == conv.units + 5


def test_real_and_meta_tensors_agree_and_the_network_is_unchanged():
    torch.manual_seed(0)
    network = build("resnet10t", "cpu").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert count(network, 64) == count(build("resnet10t"), 64)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_linear_layer_on_tokens_counts_every_token():
    rows = {layer.name: layer for layer in count(build("vit_tiny_patch16_224"), 224).layers}
    assert rows["blocks.0.attn.qkv"].output == (197, 576)
    assert rows["blocks.0.attn"].mult_adds == 2 * 197 * 197 * 192
    assert rows["cls_token+pos_embed"].parameters == 198 * 192


# table 1 of EfficientNet: kernel, expansion, maps, blocks, stride
STAGES = [(3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
          (3, 6, 320, 1, 1)]  # fmt: skip
# multipliers of width and depth, and the resolution, from the authors' code
SCALES = [(1, 1, 224), (1, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300), (1.4, 1.8, 380), (1.6, 2.2, 456),
          (1.8, 2.6, 528), (2, 3.1, 600)]  # fmt: skip


def scaled_efficientnet(width, depth, size):
    """Multiply-adds and parameters from the paper's table 1 and its scaling alone."""

    def maps_of(num_maps):  # the multiple of 8 that is nearest, but not below nine tenths
        rounded = max(8, int(width * num_maps + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * width * num_maps else rounded

    side, inputs = math.ceil(size / 2), maps_of(32)
    mult_adds, parameters = 27 * inputs * side**2, (27 + 2) * inputs  # 2: BatchNorm's
    for kernel, expansion, num_maps, num_blocks, stride in STAGES:
        for number in range(math.ceil(depth * num_blocks)):
            wide, squeezed, outputs = expansion * inputs, inputs // 4, maps_of(num_maps)
            if expansion > 1:
                mult_adds, parameters = mult_adds + inputs * wide * side**2, parameters + (inputs + 2) * wide
            side = math.ceil(side / stride) if number == 0 else side
            mult_adds += (kernel**2 + outputs) * wide * side**2 + 2 * wide * squeezed
            parameters += (kernel**2 + 2 + outputs) * wide + 2 * outputs + 2 * wide * squeezed + squeezed + wide
            inputs = outputs
    hidden = maps_of(1280)
    return mult_adds + inputs * hidden * side**2 + 1000 * hidden, parameters + (inputs + 2 + 1000) * hidden + 1000


@pytest.mark.parametrize("number", range(8))
def test_efficientnets_are_table_1_scaled(number):
    found = count(build(f"tf_efficientnet_b{number}"), SCALES[number][2])
    assert (found.mult_adds, found.parameters) == scaled_efficientnet(*SCALES[number])

"""Receptive fields against the support of a gradient, which needs no rule for any operation."""

import pytest
import timm
import torch
from torch import nn

import tencrop.models.factory  # noqa: F401  registers our networks
from tencrop.complexity.count import count
from tencrop.models.alexnet import LocalResponseNorm
from typed import present

# a layer, its image size, its field by hand or from the literature where there is one
LAYERS = [
    ("alexnet_2012", "features.conv5", 224, 163),
    ("vgg_a", "features.conv5_1", 224, 102),
    ("googlenet_2014", "features.inception3b.five.1.conv", 160, 91),
    ("googlenet_2014", "features.inception4a.pool.1.conv", 224, None),
    ("inception_v3", "Mixed_5d.branch3x3dbl_3.conv", 160, None),
    ("inception_v3", "Mixed_6b.branch7x7_2.conv", 299, None),  # kernels of 1 x 7 and 7 x 1
    ("resnet18_a", "layer3.1.conv2", 224, 211),  # slices and zeros in the shortcuts
    ("resnet18", "layer3.1.conv2", 224, 211),
    ("plain18", "layer3.1.conv2", 224, 211),
    ("densenet121", "features.denseblock2.denselayer3.conv2", 224, None),
    ("mobilenet_v1_025", "features.pointwise7.conv", 224, None),
    ("squeezenet_1_0", "features.fire5.three.conv", 227, None),
    ("fractalnet34", "blocks.0.columns.3.6.conv", 128, None),  # joins of columns
    ("convnext_atto", "stages.1.blocks.0.mlp.fc2", 224, None),  # maps in the last dimension
    ("allcnn", "features.conv6", 224, None),
    ("efficientnet_b0", "blocks.0.0.conv_dw", 64, 7),  # TensorFlow's lopsided padding aside, before any gate
    ("tf_efficientnet_b0", "blocks.0.0.conv_dw", 64, 7),
]

NARROWED = ("alexnet_2012", "vgg_a", "googlenet_2014", "allcnn", "fractalnet34")  # width=... changes no field


def positive(network):
    """The same connections with positive numbers only, and averages for maxima, whose gradient sees one input."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                sizes = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*sizes))
            elif isinstance(child, LocalResponseNorm):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(1e-3)
    return network.double().eval()


def support(network, layer, size):
    """(first, last) pixel that the middle unit of a layer depends on, per axis, and the unit's index."""
    outputs = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    images = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    network(images)
    handle.remove()
    maps = outputs[0] if outputs[0].shape[-1] == outputs[0].shape[-2] else outputs[0].permute(0, 3, 1, 2)
    unit = maps.shape[-1] // 2
    maps[0, :, unit, unit].sum().backward()
    seen = present(images.grad)[0].abs().sum(0)
    rows, columns = seen.sum(1).nonzero().flatten(), seen.sum(0).nonzero().flatten()
    return unit, {"h": (int(rows[0]), int(rows[-1])), "w": (int(columns[0]), int(columns[-1]))}


@pytest.mark.parametrize(("name", "layer", "size", "known"), LAYERS, ids=lambda value: str(value))
def test_the_field_is_where_the_gradient_is(name, layer, size, known):
    torch.manual_seed(0)
    network = positive(timm.create_model(name, width=0.1) if name in NARROWED else timm.create_model(name))
    windows = next(present(row.field).windows for row in count(network, size).layers if row.name == layer)
    unit, seen = support(network, layer, size)
    for axis, (first, last) in seen.items():
        window = windows[axis]
        start = window.start + unit * window.jump
        assert (first, last) == (max(0, start), min(size - 1, start + window.size - 1))
        assert window.size <= size, "choose a layer that does not see the whole image"
        assert known in (None, window.size)


def last_field(name, layer, size=224, **options):
    with torch.device("meta"):
        network = timm.create_model(name, **options)
    return next(row.field for row in count(network, size).layers if row.name == layer)


@pytest.mark.parametrize(
    ("name", "layer", "size", "jump"),
    [
        ("alexnet_2012", "features.pool5", 195, 32),
        ("vgg_d", "features.pool5", 212, 32),
        ("resnet50_v1", "layer4.2.conv3", 483, 32),
        ("resnet50", "layer4.2.conv3", 427, 32),
        ("resnet101_v1", "layer4.2.conv3", 1027, 32),
        ("inception_v3", "Mixed_7c.branch3x3dbl_3b.conv", 1311, 32),
    ],
)
def test_fields_larger_than_the_image(name, layer, size, jump):
    """As Araujo et al. (Distill 2019) list them for VGG-16, ResNet-v1-50 and -101, Inception-v3; from memory."""
    field = last_field(name, layer, 299 if name == "inception_v3" else 224)
    assert field.windows["h"][:2] == (size, jump)


def test_a_hidden_layer_sees_what_its_maps_see():
    field = last_field("alexnet_2012", "classifier.fc6")
    assert {(w.size, w.jump, w.start) for w in field.windows.values()} == {(195 + 5 * 32, 0, -64)}


def test_gates_are_marked():
    field = last_field("efficientnet_b0", "blocks.0.0.conv_pw")
    assert field.is_gated and field.windows["h"].size == 7
    assert not last_field("efficientnet_b0", "blocks.0.0.conv_dw").is_gated


def test_tokens_have_no_window():
    assert last_field("vit_tiny_patch16_224", "patch_embed.proj").windows["w"].size == 16
    assert last_field("vit_tiny_patch16_224", "blocks.0.mlp.fc1") is None

"""Properties of every file of conf/model; a new file is tested here without being listed.

It builds as the command line builds it, gives class scores at its native resolution, lets every parameter learn, and
comes back from its state dict. What a network alone has is in the test of its own module; drop-path and its like,
switched off here, are tested there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.cli.choices import CONF

OURS = [name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("tencrop.")]
MODEL_FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "timm")

# Of these tables the first pattern that fits a name counts: the resolution and the arguments with which a backward
# pass is quick. Ours keep their depth and are narrower; timm's are built at full size.
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "lenet_1989": (16, {}),
    "lenet*": (32, {}),
    "*figure1": (32, {}),
    "alexnet*": (67, {"img_size": 67, "width": 0.0625}),
    "zfnet": (64, {"img_size": 64, "width": 0.0625}),
    "vgg*": (64, {"img_size": 64, "width": 0.0625}),
    "nin": (96, {"width": 0.125}),
    "allcnn": (96, {"width": 0.125}),
    "googlenet*": (96, {"img_size": 96, "width": 0.25}),  # at 0.125 the two kernels before a 5 x 5 may both be dead
    "bn_inception": (64, {"width": 0.125}),
    "inception_v3*": (299, {}),  # its auxiliary head has no smaller one
    "squeezenet*": (96, {"width": 0.25}),  # as googlenet
    "plain*": (64, {"width": 0.25}),
    "resne*": (64, {"width": 0.25}),
    "wide_resnet*": (64, {"width": 0.375}),
    "densenet*": (64, {"growth_rate": 8}),
    "mobilenet*": (64, {"width": 0.25}),
    "fractalnet*": (64, {"width": 0.0625}),
    "vit*": (64, {"img_size": 64}),
}
SMALL_OF_TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "swin*window12*": (96, {"img_size": 96}),
    "swin*": (56, {"img_size": 56}),
    "vit*": (64, {"img_size": 64}),
    "deit*": (64, {"img_size": 64}),
    "*": (64, {}),
}
BATCH = 4
# options that give a network other layers
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "alexnet_2012": [
        {"lrn": False},
        {"lrn_alpha_over_n": True},
        {"overlapping": False},
        {"activation": "tanh"},
        {"six_convolutions": True},
        *({"remove_layer": number} for number in (2, 3, 4, 5)),
    ],
    "alexnet_2012_figure1": [{"activation": "tanh"}, {"lrn": True}, {"init_std": 0.01}],
    "zfnet": [
        {"lrn": False},
        {"num_kernels": [96, 256, 512, 1024, 512], "hidden_units": 8192},
        {"remove_layers": [3, 4]},
        {"remove_layers": [5]},
        {"remove_layers": [7]},
        {"remove_layers": [3, 4, 6, 7]},
    ],
    "vgg_a": [{"init": "normal"}],
    "googlenet_2014": [{"lrn": False}, {"separable_stem": True}, {"auxiliary_weight": 0.0}],
    "bn_inception": [{"activation": "sigmoid"}, {"projections": 128}],
    "squeezenet_1_0": [{"bypass": "simple"}, {"bypass": "complex"}, {"class_padding": 0}],
}
# files for 384 pixels of what is, at SMALL's size, the network of another file
OF_ANOTHER_SIZE = [name for name in MODEL_FILES if name.endswith("_384") and f"{name[:-4]}_224" in MODEL_FILES]
CASES = [
    (name, options) for name in MODEL_FILES if name not in OF_ANOTHER_SIZE for options in ({}, *VARIANTS.get(name, []))
]


def test_every_network_of_ours_has_a_file():
    assert {"lenet5", "alexnet_2012", "vgg_e"} <= set(OURS) <= set(MODEL_FILES)


@pytest.mark.parametrize("name", OF_ANOTHER_SIZE)
def test_omitted_networks_differ_only_in_size(name, composed):
    own, smaller = (composed(f"model={one}", "experiment=null").model for one in (name, f"{name[:-4]}_224"))
    assert own.kwargs == smaller.kwargs


@pytest.mark.parametrize("name", MODEL_FILES)
def test_class_scores_at_the_native_resolution(name, build, composed):
    config = composed(f"model={name}")
    assert config.model.name in (name, name.removesuffix("_384"))  # a convolutional network takes any size
    num_classes = 10 if name == "lenet5" else 1000  # its outputs are pictures of the ten digits
    with torch.device("meta"):
        network = build(name, num_classes=num_classes).eval()
        assert network(torch.empty(2, 3, config.image_size, config.image_size)).shape == (2, num_classes)


@pytest.mark.parametrize("name", OURS)
def test_other_resolutions(name, build, composed):
    """Accepted directly, or through img_size if fully-connected layers fix the resolution."""
    num_classes, side = 10 if name == "lenet5" else 7, composed(f"model={name}").image_size + 32
    images = torch.empty(2, 3, side, side, device="meta")
    with torch.device("meta"):
        if not gives_scores(build(name, num_classes=num_classes), images, num_classes):
            assert gives_scores(build(name, num_classes=num_classes, img_size=side), images, num_classes)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_parameter_learns_and_the_state_dict_round_trips(name, options, build, switch_off_drops):
    """A backward pass in training mode through all outputs, the auxiliary heads' too."""
    torch.manual_seed(0)
    table = SMALL if name in OURS else SMALL_OF_TIMM
    side, kwargs = next(small for pattern, small in table.items() if fnmatchcase(name, pattern))
    network = switch_off_drops(build(name, num_classes=10, **kwargs, **options))
    make_zero_scales_nonzero(network)
    images, labels = torch.randn(BATCH, 3, side, side), torch.arange(BATCH)
    outputs = list(tensors_of(network(images)))
    for again, logits in zip(tensors_of(network(images)), outputs, strict=True):
        assert torch.equal(again, logits), "something is still drawn: switch_off_drops does not know it"
        assert logits.shape == (BATCH, 10)
    torch.stack([nn.functional.cross_entropy(logits, labels) for logits in outputs]).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{key} is not reached"
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), key
        parameter.grad = None  # the largest networks have a gigabyte of them
    other = switch_off_drops(build(name, num_classes=10, **kwargs, **options))
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network.eval()(images), other.eval()(images))


def gives_scores(network: nn.Module, images: Tensor, num_classes: int) -> bool:
    try:
        return network.eval()(images).shape == (len(images), num_classes)
    except (RuntimeError, ValueError, AssertionError):  # of the first layer that does not fit
        return False


@torch.no_grad()
def make_zero_scales_nonzero(network: nn.Module) -> None:
    """Scales that start at 0 (the last of a residual branch) block the gradient of the layers before them."""
    for key, parameter in network.named_parameters():
        if not key.endswith("bias") and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)


def tensors_of(outputs: Any) -> Iterator[Tensor]:
    """The logits of a network in training: a tensor, or several where it has auxiliary heads."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for output in outputs.values():
            yield from tensors_of(output)
    else:
        assert isinstance(outputs, Sequence)
        for output in outputs:
            yield from tensors_of(output)

"""What holds of every network of ours, found in timm's registry: a new one is tested here without being named.

It builds, gives class scores at its native resolution, lets every parameter learn, and comes back from its state
dict. Every file of conf/model builds too. What a network alone has is in the test of its own module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import Model
from tencrop.config.verbs import CONF
from tencrop.models.factory import build_model

OURS = [name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("tencrop.")]
MODEL_FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "timm")

# Of these tables the first pattern that fits a name counts. What none fits has the default.
NATIVE_SIZE = {"lenet_1989": 16, "lenet*": 32, "*figure1": 32, "squeezenet*": 227, "inception_v3*": 299}
NATIVE_SIZE_DEFAULT = 224
NUM_CLASSES = {"lenet5": 10}  # its outputs are pictures of the ten digits
NUM_CLASSES_DEFAULT = 1000
# the resolution and the arguments with which a backward pass is quick
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "lenet_1989": (16, {}),
    "lenet*": (32, {}),
    "*figure1": (32, {}),
    "alexnet*": (67, {"img_size": 67, "width": 0.0625}),
    "zfnet": (64, {"img_size": 64, "width": 0.0625}),
    "vgg*": (64, {"img_size": 64, "width": 0.0625}),
    "nin": (96, {"width": 0.125}),
    "allcnn": (96, {"width": 0.125}),
    "googlenet*": (96, {"img_size": 96, "width": 0.125}),
    "bn_inception": (64, {"width": 0.125}),
    "inception_v3*": (299, {}),  # its auxiliary head has no smaller one
    "squeezenet*": (96, {"width": 0.125}),
    "plain*": (64, {"width": 0.25}),
    "resne*": (64, {"width": 0.25}),
    "wide_resnet*": (64, {"width": 0.375}),
    "densenet*": (64, {"growth_rate": 8}),
    "mobilenet*": (64, {"width": 0.25}),
    "fractalnet*": (64, {"width": 0.0625}),
    "vit*": (64, {"img_size": 64, "depth": 2}),
}
SMALL_DEFAULT: tuple[int, dict[str, Any]] = (64, {})
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
CASES = [(name, options) for name in OURS for options in ({}, *VARIANTS.get(name, []))]


def test_the_registry_knows_our_networks():
    assert {"lenet5", "alexnet_2012", "vgg_e"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_class_scores_at_the_native_resolution(name):
    num_classes = first(NUM_CLASSES, name, NUM_CLASSES_DEFAULT)
    side = first(NATIVE_SIZE, name, NATIVE_SIZE_DEFAULT)
    with torch.device("meta"):
        network = build(name, num_classes=num_classes).eval()
        assert network(torch.empty(2, 3, side, side)).shape == (2, num_classes)


@pytest.mark.parametrize("name", OURS)
def test_other_resolutions(name):
    """Taken as they are, or through img_size where fully connected layers fix the resolution."""
    num_classes, side = first(NUM_CLASSES, name, 7), first(NATIVE_SIZE, name, NATIVE_SIZE_DEFAULT) + 32
    images = torch.empty(2, 3, side, side, device="meta")
    with torch.device("meta"):
        if not gives_scores(build(name, num_classes=num_classes), images, num_classes):
            assert gives_scores(build(name, num_classes=num_classes, img_size=side), images, num_classes)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_parameter_learns_and_the_state_dict_round_trips(name, options):
    """A backward pass through all outputs, the auxiliary heads' too, in float64 in training mode."""
    torch.manual_seed(0)
    side, kwargs = first(SMALL, name, SMALL_DEFAULT)
    network, other = (build(name, num_classes=10, **kwargs, **options).double() for _ in range(2))
    for each in (network, other):
        switch_off_drops(each)
    make_zero_scales_nonzero(network)
    images, labels = torch.randn(4, 3, side, side, dtype=torch.float64), torch.arange(4)
    outputs = list(tensors_of(network(images)))
    for again, logits in zip(tensors_of(network(images)), outputs, strict=True):
        assert torch.equal(again, logits), "something is still drawn: switch_off_drops does not know it"
        assert logits.shape == (4, 10)
    torch.stack([nn.functional.cross_entropy(logits, labels) for logits in outputs]).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{key} is not reached"
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), key
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        scores, same_scores = network.eval()(images), other.eval()(images)
    assert torch.equal(scores, same_scores)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_every_model_file_composes_and_builds(name, composed):
    config = composed(f"model={name}")
    assert config.model.name == name
    num_classes = first(NUM_CLASSES, config.model.name, NUM_CLASSES_DEFAULT)
    side = first(NATIVE_SIZE, config.model.name, config.image_size)
    with torch.device("meta"):
        network = build_model(config.model, num_classes=num_classes).eval()
        assert network(torch.empty(2, 3, side, side)).shape == (2, num_classes)


def first(table: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in table.items() if fnmatchcase(name, pattern)), default)


def build(name: str, *, num_classes: int, **kwargs) -> nn.Module:
    """Through build_model, with the bn_group that it demands of networks with BatchNorm and of no others."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=num_classes, **kwargs)
    bn_group = 32 if any(isinstance(module, _BatchNorm) for module in network.modules()) else None
    return build_model(Model(name, kwargs, channels_last=False, bn_group=bn_group), num_classes=num_classes)


def gives_scores(network: nn.Module, images: Tensor, num_classes: int) -> bool:
    try:
        return network.eval()(images).shape == (len(images), num_classes)
    except (RuntimeError, ValueError, AssertionError):  # of the first layer that does not fit
        return False


def switch_off_drops(network: nn.Module) -> None:
    """Every probability of dropout, drop-path and their like becomes 0: `p` of torch's, drop_... of others."""
    for module in network.modules():
        rates = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        rates += [key for key, value in vars(module).items() if key.startswith("drop") and isinstance(value, float)]
        for key in rates:
            setattr(module, key, 0.0)


@torch.no_grad()
def make_zero_scales_nonzero(network: nn.Module) -> None:
    """Scales that start at 0 (the last of a residual branch) hide what lies behind them from the gradient."""
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

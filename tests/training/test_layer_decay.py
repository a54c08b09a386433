"""The learning rate of each layer in fine-tuning, against timm's own parameter groups and ConvNeXt's code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn

from tencrop.config import Optimizer, UserError
from tencrop.training.layer_decay import check_layer_decay, convnext_layer
from tencrop.training.optimizers import parameter_groups
from typed import present

SMALL: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 32)},
    "deit_tiny_distilled_patch16_224": {"depth": 3, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 2, 3, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
}


def optimizer(**changes) -> Optimizer:
    values: dict[str, Any] = {
        "lr": 1e-3,
        "weight_decay": 0.05,
        "decay": "timm",
        "betas": [0.9, 0.999],
        "eps": 1e-8,
    } | changes
    return Optimizer("adamw", **values)


def table(network: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Scale of lr and weight decay of each parameter, by name; a parameter in two groups fails."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    rows = [(names[one], (group["lr_scale"], group["weight_decay"])) for group in groups for one in group["params"]]
    assert len(rows) == len(dict(rows))
    return dict(rows)


@pytest.mark.parametrize("name", SMALL)
def test_the_groups_are_those_of_timm(name):
    network = timm.create_model(name, **SMALL[name])
    next(network.parameters()).requires_grad_(False)
    ours = table(network, parameter_groups(optimizer(layer_decay=0.7), network))
    listed: set[str] = getattr(network, "no_weight_decay", set)()
    theirs = param_groups_layer_decay(network, weight_decay=0.05, no_weight_decay_list=listed, layer_decay=0.7)
    assert ours == table(network, theirs) and len(ours) == len(list(network.parameters())) - 1
    assert len({scale for scale, _ in ours.values()}) > 3 and max(ours.values())[0] == 1


def test_weight_decay_is_that_of_optimizer_decay():
    network = timm.create_model("convnext_tiny", **SMALL["convnext_tiny"])
    every = table(network, parameter_groups(optimizer(layer_decay=0.7, decay="all"), network))
    assert {decay for _, decay in every.values()} == {0.05}
    weights = table(network, parameter_groups(optimizer(layer_decay=0.7, decay="weights"), network))
    assert {name: decay for name, (_, decay) in weights.items()} == {
        name: 0.05 * (parameter.ndim > 1) for name, parameter in network.named_parameters()
    }
    assert {name: scale for name, (scale, _) in weights.items()} == {name: scale for name, (scale, _) in every.items()}


def test_the_layers_of_convnexts_code():
    """Its optim_factory.py for B: blocks of the third stage in nine groups of three, other stages whole."""
    network = timm.create_model("convnext_base", depths=(3, 3, 27, 3), dims=(8, 8, 8, 8))
    layers: dict[int, set[str]] = {}
    for name, _ in network.named_parameters():
        part = present(re.match(r"stem|head|stages\.\d\.(downsample|blocks\.\d+)", name))[0]
        layers.setdefault(convnext_layer(name), set()).add(part.removeprefix("stages."))
    blocks = {stage: [f"{stage}.blocks.{block}" for block in range((3, 3, 27, 3)[stage])] for stage in range(4)}
    expected = [{"stem"}, {*blocks[0]}, {*blocks[1], "1.downsample"}]
    expected += [set(blocks[2][3 * group : 3 * group + 3]) for group in range(9)]
    expected += [{*blocks[3], "3.downsample"}, {"head"}]
    expected[3].add("2.downsample")
    assert layers == dict(enumerate(expected))
    scales = table(network, parameter_groups(optimizer(layer_decay=0.7, layers="convnext"), network))
    assert scales["head.fc.weight"] == (1.0, 0.05) and scales["stem.0.weight"] == (pytest.approx(0.7**13), 0.05)
    assert scales["stages.2.blocks.4.norm.weight"] == (pytest.approx(0.7**9), 0.0)


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        (torchvision.models.resnet18, {}, r"layer_decay=0\.7: NET does not tell the order of its layers .*; choose"),
        (
            lambda: timm.create_model("test_vit"),
            {"layers": "convnext"},
            "optimizer.layers=convnext: NET is no ConvNeXt of timm; set optimizer.layers=timm",
        ),
    ],
)
def test_a_network_without_such_layers_is_refused(network, changes, words):
    with pytest.raises(UserError, match=words):
        check_layer_decay(optimizer(layer_decay=0.7, **changes), network(), name="NET")
    check_layer_decay(optimizer(), network(), name="NET")

import copy
import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from operations import Operations
from rehearsal import rehearsal
from tencrop.config import Optimizer
from tencrop.models.mobilenet import mobilenet_v1_025
from tencrop.training.optimizers import SGDAlexNet, build_optimizer, split_by_decay


def recipe(**changes) -> Optimizer:
    sgd = Optimizer("sgd", lr=0.1, weight_decay=5e-4, decay="all", momentum=0.9, nesterov=False)
    return dataclasses.replace(sgd, **changes)


def holding(*weights: nn.Parameter) -> nn.Module:
    return nn.ParameterList(weights)


def walk(optimizer, weight: nn.Parameter, gradients: list[float], rates: list[float]) -> list[float]:
    path = []
    for gradient, lr in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        path.append(weight.item())
    return path


def test_alexnet_sgd_against_hand_computed_values():
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = SGDAlexNet([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    w, v, expected = 2.0, 0.0, []
    for gradient, lr in ((1.0, 0.1), (-2.0, 0.1), (0.5, 0.01)):
        v = 0.9 * v - 0.01 * lr * w - lr * gradient
        w = w + v
        expected.append(w)
    assert walk(optimizer, weight, [1.0, -2.0, 0.5], [0.1, 0.1, 0.01]) == pytest.approx(expected, rel=1e-14)
    assert expected[0] == pytest.approx(2.0 - 0.1 * 1.0 - 0.01 * 0.1 * 2.0)


KINDS = {
    "sgd": {},
    "adamw": {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "momentum": None, "nesterov": None},
}


@pytest.mark.parametrize("name", KINDS)
def test_on_a_gpu_an_optimizer_is_fused_and_stays_so_with_the_state_of_another_device(name):
    """Fake tensors on `cuda` take the step: torch's fused operations exist for them."""
    on_cpu = build_optimizer(recipe(**KINDS[name]), holding(nn.Parameter(torch.zeros(3))))
    assert not is_fused(on_cpu)
    with rehearsal():
        on_gpu = build_optimizer(recipe(**KINDS[name]), holding(nn.Parameter(torch.zeros(3, device="cuda"))))
        assert is_fused(on_gpu)
        of_gpu = on_gpu.state_dict()
        on_gpu.load_state_dict(on_cpu.state_dict())
        assert is_fused(on_gpu)
        assert {value.device.type for state in on_gpu.state.values() for value in state.values()} == {"cuda"}
    assert of_gpu["param_groups"][0]["fused"]
    on_cpu.load_state_dict({"state": {}, "param_groups": of_gpu["param_groups"]})
    assert not is_fused(on_cpu)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Takes a step with gradients of 1, and returns whether it was torch's fused operation."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    with Operations() as operations:
        optimizer.step()
    return any("fused" in name for name in operations.counts)


def test_torch_sgd_against_hand_computed_values():
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = build_optimizer(recipe(weight_decay=0.01), holding(weight))
    w, v, expected = 2.0, 0.0, []
    for gradient, lr in ((1.0, 0.1), (-2.0, 0.1), (0.5, 0.01)):
        v = 0.9 * v + gradient + 0.01 * w
        w = w - lr * v
        expected.append(w)
    assert walk(optimizer, weight, [1.0, -2.0, 0.5], [0.1, 0.1, 0.01]) == pytest.approx(expected, rel=1e-14)


def test_both_sgds_agree_until_the_learning_rate_changes():
    gradients, rates = [1.0, -0.5, 2.0, 0.3, -1.0], [0.1, 0.1, 0.1, 0.01, 0.01]
    paths = {}
    for name in ("sgd", "sgd_alexnet"):
        weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        paths[name] = walk(build_optimizer(recipe(name=name), holding(weight)), weight, gradients, rates)
    assert paths["sgd"][:3] == pytest.approx(paths["sgd_alexnet"][:3], rel=1e-12)
    # the paper's velocity still carries the old rate: 0.9 times the third step, where torch's is a tenth of that
    difference = paths["sgd"][3] - paths["sgd_alexnet"][3]
    third_step = paths["sgd"][2] - paths["sgd"][1]
    assert difference == pytest.approx(0.9 * third_step * (0.1 - 1.0), rel=1e-9)


def test_alexnet_sgd_continues_from_its_state():
    model = nn.Linear(3, 2)
    optimizer = SGDAlexNet(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    twin = copy.deepcopy(model)
    other = SGDAlexNet(twin.parameters(), lr=0.3, momentum=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weights, steps in ((model, optimizer), (twin, other)):
        steps.zero_grad()
        weights(torch.ones(1, 3)).sum().backward()
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_decay_weights_excludes_vectors_and_frozen_parameters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    groups = build_optimizer(recipe(decay="weights"), model).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(5e-4, 1), (0.0, 4)]
    groups = build_optimizer(recipe(decay="all"), model).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(5e-4, 5)]


def test_nesterov_and_adamw_arguments_reach_torch():
    network = nn.Linear(2, 2)
    sgd = build_optimizer(recipe(nesterov=True), network)
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["nesterov"] and sgd.defaults["dampening"] == 0
    adamw = build_optimizer(recipe(name="adamw", betas=[0.9, 0.95], eps=1e-6, momentum=None, nesterov=None), network)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.95) and adamw.defaults["eps"] == 1e-6
    assert adamw.param_groups[0]["weight_decay"] == 5e-4


GRADIENTS = np.random.default_rng(0).normal(0, 0.3, 20).tolist()
RATES = [0.1 * 0.97 ** (step // 3) for step in range(20)]  # falls every third step


def tensorflow_rmsprop(eps: float, *, mean_square: float = 1.0, is_eps_inside=True, is_lr_inside=True) -> list[float]:
    """One weight after each step, by the update of TensorFlow's RMSPropOptimizer; L2 weight decay in the gradient."""
    weight, momentum, path = 2.0, 0.0, []
    for gradient, lr in zip(GRADIENTS, RATES, strict=True):
        gradient = gradient + 0.01 * weight
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        root = math.sqrt(mean_square + eps) if is_eps_inside else math.sqrt(mean_square) + eps
        momentum = 0.8 * momentum + (lr if is_lr_inside else 1.0) * gradient / root
        weight -= momentum if is_lr_inside else lr * momentum
        path.append(weight)
    return path


@pytest.mark.parametrize("eps", [1.0, 1e-3])
def test_rmsprop_of_tensorflow(eps):
    values = {"name": "rmsprop_tf", "momentum": 0.8, "nesterov": None, "alpha": 0.9, "eps": eps, "weight_decay": 0.01}
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    path = walk(build_optimizer(recipe(**values), holding(weight)), weight, GRADIENTS, RATES)
    assert path == pytest.approx(tensorflow_rmsprop(eps), rel=1e-12)
    for mistake in ({"mean_square": 0.0}, {"is_eps_inside": False}, {"is_lr_inside": False}):  # as torch's RMSprop
        assert path != pytest.approx(tensorflow_rmsprop(eps, **mistake), rel=1e-6)


def nvlamb(max_norm: float, *, always_adapt: bool) -> list[float]:
    """A decayed 2 x 2 weight and an undecayed bias after each step, flattened; two values a gradient."""
    groups: list[dict[str, Any]] = [{"w": np.full((2, 2), 0.5), "decay": 0.1}, {"w": np.full(2, 0.25), "decay": 0.0}]
    for group in groups:
        group["m"], group["v"] = np.zeros_like(group["w"]), np.zeros_like(group["w"])
    path: list[float] = []
    for step, (gradient, lr) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
        gradients = [np.full((2, 2), 5 * gradient), np.full(2, gradient)]
        norm = math.sqrt(sum((one**2).sum() for one in gradients))
        for group, raw in zip(groups, gradients, strict=True):
            one = raw / max(1.0, norm / max_norm)
            group["m"] = 0.9 * group["m"] + 0.1 * one
            group["v"] = 0.99 * group["v"] + 0.01 * one**2
            update = (group["m"] / (1 - 0.9**step)) / (np.sqrt(group["v"] / (1 - 0.99**step)) + 1e-6)
            update = update + group["decay"] * group["w"]
            trust = np.linalg.norm(group["w"]) / np.linalg.norm(update) if group["decay"] or always_adapt else 1.0
            group["w"] = group["w"] - lr * trust * update
        path += [*groups[0]["w"].ravel(), *groups[1]["w"]]
    return path


def test_lamb_in_both_groups():
    weight = nn.Parameter(torch.full((2, 2), 0.5, dtype=torch.float64))
    bias = nn.Parameter(torch.full((2,), 0.25, dtype=torch.float64))
    values = {"name": "lamb", "momentum": None, "nesterov": None, "betas": [0.9, 0.99], "eps": 1e-6}
    optimizer = build_optimizer(recipe(**values, weight_decay=0.1, decay="weights"), holding(weight, bias))
    path: list[float] = []
    for gradient, lr in zip(GRADIENTS, RATES, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        weight.grad, bias.grad = torch.full_like(weight, 5 * gradient), torch.full_like(bias, gradient)
        optimizer.step()
        path += [*weight.detach().flatten().tolist(), *bias.tolist()]
    assert path == pytest.approx(nvlamb(1.0, always_adapt=False), rel=1e-12)
    assert path != pytest.approx(nvlamb(math.inf, always_adapt=False), rel=1e-4)
    assert path != pytest.approx(nvlamb(1.0, always_adapt=True), rel=1e-4)


def undecayed(decay: str, network: nn.Module) -> set[str]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, others = split_by_decay(decay, network)
    assert {*decayed, *others} == names.keys() and len(decayed) + len(others) == len(names)
    return {names[parameter] for parameter in others}


def on_meta(name: str) -> nn.Module:
    """A network without values in its tensors, which takes no time to initialize."""
    with torch.device("meta"):
        return timm.create_model(name)


TABLES = {
    f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
    for stage, depth in enumerate((2, 2, 6, 2))
    for block in range(depth)
}


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("vit_tiny_patch16_224", {"pos_embed", "cls_token"}),
        ("deit_tiny_distilled_patch16_224", {"pos_embed", "cls_token", "dist_token"}),
        ("swin_tiny_patch4_window7_224", TABLES),
        ("resnet18", set()),
    ],
)
def test_decay_of_timm_excludes_what_the_network_lists(name, listed):
    """The tables of Swin and the tokens have two or more dimensions, so that `weights` would decay them."""
    network = on_meta(name)
    vectors = {name for name, parameter in network.named_parameters() if parameter.ndim < 2}
    assert undecayed("weights", network) == vectors
    assert undecayed("timm", network) == vectors | listed and not vectors & listed


def test_decay_of_efficientnet_includes_biases():
    names = {name for name, _ in on_meta("tf_efficientnet_b0").named_parameters()}
    norms = {name for name in names if re.search(r"(^|\.)bn\d?\.(weight|bias)$", name)}
    assert len(norms) == 98 and {"classifier.bias", "blocks.0.0.se.conv_reduce.bias"} <= names - norms
    assert undecayed("not_norm", on_meta("tf_efficientnet_b0")) == norms
    assert "downsample.1" in " ".join(undecayed("not_norm", on_meta("resnet18")))
    layer_norms = {name for name, _ in on_meta("vit_tiny_patch16_224").named_parameters() if "norm" in name}
    assert undecayed("not_norm", on_meta("vit_tiny_patch16_224")) == layer_norms


def test_decay_of_mobilenet_excludes_the_depthwise_kernels():
    network = mobilenet_v1_025(num_classes=10)
    kernels = {name for name, weight in network.named_parameters() if weight.ndim == 4 and weight.shape[1] == 1}
    assert len(kernels) == 13
    vectors = {name for name, parameter in network.named_parameters() if parameter.ndim < 2}
    assert undecayed("not_depthwise", network) == kernels | vectors

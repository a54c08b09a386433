import copy
import dataclasses

import pytest
import torch
from torch import nn

from tencrop.config import Optimizer
from tencrop.training.optimizers import SGDAlexNet, build_optimizer


def recipe(**changes) -> Optimizer:
    sgd = Optimizer("sgd", lr=0.1, weight_decay=5e-4, decay="all", momentum=0.9, nesterov=False)
    return dataclasses.replace(sgd, **changes)


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


def test_torch_sgd_against_hand_computed_values():
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = build_optimizer(recipe(weight_decay=0.01), [("w", weight)])
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
        paths[name] = walk(build_optimizer(recipe(name=name), [("w", weight)]), weight, gradients, rates)
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
    groups = build_optimizer(recipe(decay="weights"), model.named_parameters()).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(5e-4, 1), (0.0, 4)]
    groups = build_optimizer(recipe(decay="all"), model.named_parameters()).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(5e-4, 5)]


def test_nesterov_and_adamw_arguments_reach_torch():
    parameters = list(nn.Linear(2, 2).named_parameters())
    sgd = build_optimizer(recipe(nesterov=True), parameters)
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["nesterov"] and sgd.defaults["dampening"] == 0
    adamw = build_optimizer(recipe(name="adamw", betas=[0.9, 0.95], eps=1e-6, momentum=None, nesterov=None), parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.95) and adamw.defaults["eps"] == 1e-6
    assert adamw.param_groups[0]["weight_decay"] == 5e-4

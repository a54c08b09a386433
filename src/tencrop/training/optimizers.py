"""Optimizers: torch's SGD and AdamW, and SGD with the momentum update of Krizhevsky et al. (2012)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tencrop import config


def build_optimizer(
    optimizer: config.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """Build the optimizer that the recipe names, for all parameters that require a gradient.

    With `decay: weights`, weight decay applies only to tensors of two or more dimensions, and thus not to biases or to
    the scale and shift of normalization layers (He et al. 2019, section 3.1, "no bias decay").
    """
    # Recipes differ, hence the key `decay`: fb.resnet.torch decays all parameters, Caffe's AlexNet only the weights.
    parameters = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if optimizer.decay == "all" or parameter.ndim >= 2]
    others = [parameter for parameter in parameters if optimizer.decay != "all" and parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": optimizer.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # torch refuses an empty group
    if optimizer.name == "sgd":
        assert optimizer.momentum is not None and optimizer.nesterov is not None
        return torch.optim.SGD(groups, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=optimizer.nesterov)
    if optimizer.name == "sgd_alexnet":
        assert optimizer.momentum is not None
        return SGDAlexNet(groups, lr=optimizer.lr, momentum=optimizer.momentum)
    assert optimizer.name == "adamw" and optimizer.betas is not None and optimizer.eps is not None, optimizer.name
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=(optimizer.betas[0], optimizer.betas[1]), eps=optimizer.eps)


class SGDAlexNet(torch.optim.Optimizer):
    """SGD with the momentum update of Krizhevsky et al. (2012, section 5) and of Caffe:

        v <- momentum * v - weight_decay * lr * w - lr * gradient
        w <- w + v

    The velocity contains the learning rate: after lr drops, gradients from before the drop still move the weights at
    the old rate. torch.optim.SGD applies lr outside (v <- momentum * v + gradient + weight_decay * w; w <- w - lr * v).
    Both give the same weights while lr is constant, and differ from the first step after it changes (Goyal et al. 2017,
    section 3, "momentum correction").
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients: list[Tensor] = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            # Four in-place foreach operations on the whole group. Another order of additions would round differently.
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * group["lr"])
            torch._foreach_add_(velocities, gradients, alpha=-group["lr"])
            torch._foreach_add_(weights, velocities)
        return loss

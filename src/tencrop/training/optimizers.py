"""Optimizers: those of torch and timm, and SGD with the momentum update of Krizhevsky et al. (2012)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Lamb, RMSpropTF, param_groups_weight_decay
from torch import Tensor, nn

from tencrop import config
from tencrop.models.normalization import is_normalization
from tencrop.training.layer_decay import layer_scales


def build_optimizer(optimizer: config.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that the recipe names, for all parameters of `network` that require a gradient.

    On a GPU, SGD and AdamW are torch's fused ones: one kernel updates many tensors, where the default takes one for
    each operation. On a CPU they are torch's default, so that weights keep their bits.
    """
    groups = parameter_groups(optimizer, network)
    lr, momentum, eps = optimizer.lr, optimizer.momentum, optimizer.eps
    if optimizer.name == "sgd":
        assert momentum is not None and optimizer.nesterov is not None
        return _on_device(torch.optim.SGD, groups, lr=lr, momentum=momentum, nesterov=optimizer.nesterov)
    if optimizer.name == "sgd_alexnet":
        assert momentum is not None
        return SGDAlexNet(groups, lr=lr, momentum=momentum)
    assert eps is not None, optimizer.name
    if optimizer.name == "rmsprop_tf":
        # TensorFlow's RMSProp differs from torch's: eps is inside the square root, the mean square starts at 1, and the
        # momentum contains the learning rate.
        assert momentum is not None and optimizer.alpha is not None
        return RMSpropTF(groups, lr=lr, alpha=optimizer.alpha, eps=eps, momentum=momentum)
    assert optimizer.betas is not None, optimizer.name
    betas = (optimizer.betas[0], optimizer.betas[1])
    if optimizer.name == "lamb":
        # By its defaults, timm's LAMB clips the global norm of the gradient to 1, and tensors without weight decay are
        # not scaled by a trust ratio.
        return Lamb(groups, lr=lr, betas=betas, eps=eps)
    assert optimizer.name == "adamw", optimizer.name
    return _on_device(torch.optim.AdamW, groups, lr=lr, betas=betas, eps=eps)


def _on_device(
    kind: type[torch.optim.SGD] | type[torch.optim.AdamW], groups: list[dict[str, Any]], **options: Any
) -> torch.optim.Optimizer:
    """An SGD or AdamW for the device of the parameters; also after loading the state of one on another device."""
    fused = True if all(weight.is_cuda for group in groups for weight in group["params"]) else None
    optimizer = kind(groups, fused=fused, **options)

    def keep_own(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        # A state dict has the switch of the device it was saved on, and AdamW puts its step counts where that asks.
        return state | {"param_groups": [group | {"fused": fused} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep_own)
    return optimizer


def parameter_groups(optimizer: config.Optimizer, network: nn.Module) -> list[dict[str, Any]]:
    """Groups of parameters with the same weight decay and, with layer_decay, the same `lr_scale`.

    The classifier multiplies the learning rate of each step by lr_scale. Groups with layer_decay start at the input.
    """
    decayed, others = split_by_decay(optimizer.decay, network)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": optimizer.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if optimizer.layer_decay is not None:
        scales = layer_scales(optimizer, network)
        groups = [
            {**group, "params": [one for one in group["params"] if scales[one] == scale], "lr_scale": scale}
            for scale in sorted(set(scales.values()))
            for group in groups
        ]
    return [group for group in groups if group["params"]]  # torch refuses an empty group


def split_by_decay(decay: str, network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that require a gradient: those with weight decay under `optimizer.decay`, and the others.

    all: as fb.resnet.torch and pycls. weights: tensors of two or more dimensions, and thus neither biases nor the scale
    and shift of normalization layers (He et al. 2019, section 3.1, "no bias decay"). timm: as its own training script,
    DeiT, Swin and ConvNeXt. not_norm: as EfficientNet. not_depthwise: as MobileNet (Howard et al. 2017).
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    excluded: set[Tensor] = set()
    if decay in ("weights", "not_depthwise"):
        excluded = {parameter for parameter in parameters if parameter.ndim < 2}
    if decay == "not_depthwise":
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        excluded |= {layer.weight for layer in convolutions if layer.groups == layer.in_channels > 1}
    if decay == "not_norm":
        layers = filter(is_normalization, network.modules())
        # recurse=False: timm's BatchNormAct2d contains its activation, which may have a parameter
        excluded = {parameter for layer in layers for parameter in layer.parameters(recurse=False)}
    if decay == "timm":
        # torchvision's networks, ours and most convolutional ones of timm list none.
        listed: set[str] = getattr(network, "no_weight_decay", set)()
        groups = param_groups_weight_decay(network, weight_decay=1.0, no_weight_decay_list=listed)
        excluded = {parameter for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    decayed = [parameter for parameter in parameters if parameter not in excluded]
    return decayed, [parameter for parameter in parameters if parameter in excluded]


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

"""Layer-wise learning rate decay for fine-tuning: the earlier a layer, the lower its learning rate.

optimizers.py multiplies the learning rate of each parameter by the scale that `layer_scales` gives it.
"""

from __future__ import annotations

import re

from timm.models import ConvNeXt
from timm.optim import param_groups_layer_decay
from torch import nn

from tencrop.config import Optimizer, UserError

CONVNEXT_LAYERS = 13  # the stem, 12 groups of blocks, and the last norm with the head, counted from 0


def check_layer_decay(optimizer: Optimizer, network: nn.Module, *, name: str) -> None:
    """Raise UserError if the network does not tell its layers; `name` is the network's."""
    decay = optimizer.layer_decay
    if decay is None:
        return
    if optimizer.layers == "convnext" and not isinstance(network, ConvNeXt):
        raise UserError(f"optimizer.layers=convnext: {name} is no ConvNeXt of timm; set optimizer.layers=timm")
    if not hasattr(network, "group_matcher"):
        raise UserError(
            f"optimizer.layer_decay={decay:g}: {name} does not tell the order of its layers (timm's group_matcher);"
            " choose a network of timm, or set optimizer.layer_decay=null"
        )


def layer_scales(optimizer: Optimizer, network: nn.Module) -> dict[nn.Parameter, float]:
    """The scale of each learning parameter's learning rate: layer_decay to the power of the layers behind it.

    The network must have passed `check_layer_decay`.
    """
    assert optimizer.layer_decay is not None
    if optimizer.layers == "convnext":
        return {
            parameter: optimizer.layer_decay ** (CONVNEXT_LAYERS - convnext_layer(name))
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
    groups = param_groups_layer_decay(network, layer_decay=optimizer.layer_decay)
    return {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}


def convnext_layer(name: str) -> int:
    """The layer, 0 to 13, of a parameter of timm's ConvNeXt, as in optim_factory.py of the authors' code.

    Of the four stages, only the third is divided, into groups of three blocks: 27 blocks in S, B and L. timm's own
    matcher counts each of these blocks as a layer, so that lr would be 0.7 ** 37 = 2e-6 of the head's in the stem,
    where the authors have 0.7 ** 13 = 0.01.
    """
    if name.startswith("stem."):
        return 0
    found = re.match(r"stages\.(\d)\.(?:blocks\.(\d+)|downsample)", name)
    if found is None:
        return CONVNEXT_LAYERS
    stage, block = int(found[1]), int(found[2] or 0)
    return (1, 2, 3 + block // 3, 12)[stage]

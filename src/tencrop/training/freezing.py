"""Keep weights of a network as they are; the classifier calls this with the patterns of training.freeze."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import UserError
from tencrop.models.name_patterns import matching_names


def freeze(network: nn.Module, patterns: Sequence[str], *, name: str) -> list[nn.Module]:
    """Take the gradient from each weight whose name matches, and put BatchNorm layers that have one in eval mode.

    In train mode, these would normalize by the batch, and move their running statistics. They are returned, because
    the next network.train() switches them back. Raises UserError for a pattern that matches nothing, or if nothing is
    left to learn.
    """
    frozen = matching_names(patterns, network.state_dict().keys(), key="training.freeze", network=name)
    for weight, parameter in network.named_parameters():
        if weight in frozen:
            # Not just left out of the optimizer: autograd would still compute its gradient, and DDP reduce it.
            parameter.requires_grad_(False)
    if frozen.issuperset(weight for weight, _ in network.named_parameters()):
        raise UserError(f"training.freeze={list(patterns)}: freezes every weight of {name}; leave its last layer out")
    layers = [
        layer
        for prefix, layer in network.named_modules()
        if isinstance(layer, _BatchNorm) and any(f"{prefix}.{own}" in frozen for own in layer.state_dict())
    ]
    return [layer.eval() for layer in layers]

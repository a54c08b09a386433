"""The last layer of a classifier in float32, whatever the precision of the layers before it.

Called by factory.py, for every network that is trained or evaluated, and by convolutional.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def score_in_float32(network: nn.Module, num_classes: int) -> None:
    """Let `network` compute its class scores in float32 in eval mode, under autocast and TF32 too; training stays as
    it is.

    bfloat16 has 8 significant bits: logits between 8 and 16 are multiples of 0.0625, so that the best two of an image
    tie, and a tie counts against the label. Costs the last layer twice.
    """
    for layer in last_layers(network, num_classes):
        layer.register_forward_hook(_again_in_float32)


def last_layers(network: nn.Module, num_classes: int) -> list[nn.Module]:
    """Every linear layer and convolution with an output for each class.

    That is the classifier of every network of timm, torchvision and ours, all of several (DeiT's two heads, CrossViT's,
    VOLO's), be it followed by pooling (NiN, SqueezeNet) or not. timm's get_classifier() leaves some of them out. A
    hidden layer that happens to have as many outputs is computed in float32 as well: slower, and no less exact.
    """
    return [layer for layer in network.modules() if _num_outputs(layer) == num_classes]


def _num_outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _ConvNd) else None


def _again_in_float32(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """A forward hook; it holds no state, so that a copied or pickled network keeps it."""
    kind = output.device.type
    if layer.training or kind == "meta" or not (torch.is_autocast_enabled(kind) or _is_tf32()):
        return None
    with torch.autocast(kind, enabled=False), _without_tf32():
        return layer.forward(inputs[0].float())  # not layer(), whose hook this is


def _is_tf32() -> bool:
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


@contextmanager
def _without_tf32() -> Iterator[None]:
    """The switches are read when an operation is launched: nothing waits for the device."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

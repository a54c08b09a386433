"""Evaluate the last layer of a classifier in float32, whatever the precision of the other layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def score_in_float32(network: nn.Module, num_classes: int) -> None:
    """Make `network` compute its logits in float32 in eval mode, also under autocast and TF32; training is unchanged.

    bfloat16 has 8 significant bits: logits between 8 and 16 are multiples of 0.0625, so the two largest of an image may
    tie, and a tie counts as an error. The last layer is computed twice.
    """
    # a hook instead of a wrapped module keeps the names in the state dict
    for layer in last_layers(network, num_classes):
        layer.register_forward_hook(_again_in_float32)


def last_layers(network: nn.Module, num_classes: int) -> list[nn.Module]:
    """Return every linear layer and convolution with one output per class.

    This finds the classifiers of all networks of timm, torchvision and ours: several heads (DeiT, CrossViT, VOLO) and
    heads followed by pooling (NiN, SqueezeNet) included; timm's get_classifier() misses some of these. A hidden layer
    with the same number of outputs is computed in float32 as well, which is slower but not less exact.
    """
    return [layer for layer in network.modules() if _num_outputs(layer) == num_classes]


def _num_outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _ConvNd) else None


def _again_in_float32(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Forward hook that recomputes the output; a function without state, so that deepcopy and pickle keep it."""
    kind = output.device.type
    # A hook runs after forward. A pre-hook could not disable autocast for the call, hence the second computation.
    if layer.training or kind == "meta" or output.dtype == torch.float64:
        return None
    if not (torch.is_autocast_enabled(kind) or _is_tf32()):
        return None
    # the weights are float32 already (autocast casts copies), so only the input is converted
    with torch.autocast(kind, enabled=False), _without_tf32():
        return layer.forward(inputs[0].float())  # layer(...) would call this hook again


def _is_tf32() -> bool:
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Context without TF32. torch reads the switches at launch, so the device is not synchronized."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

"""Classifiers as convolutions: a network that gives a map of scores where the image is larger than its own size.

A hidden layer over C maps of h x w is a convolution with that kernel, and those behind it are convolutions of 1 x 1
(Sermanet et al. 2014; Simonyan and Zisserman 2015, section 3.2). Called by inference.py for dense evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torchvision
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.func import functional_call

from tencrop.config import UserError
from tencrop.models.last_layer import score_in_float32

TOLERANCE = 1e-3  # of the largest score: far above rounding, far below another head
Shape = tuple[int, int, int]  # maps, height, width


class FullyConvolutional(nn.Module):
    """[N, 3, H, W] -> scores [N, K, h, w]; for images of the size that it was converted at h = w = 1."""

    def __init__(self, features: nn.Module, head: nn.Sequential):
        super().__init__()
        self.features, self.head = features, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class MeanScores(nn.Module):
    """[N, 3, H, W] -> logits [N, K]: the scores of a fully-convolutional network, averaged over its map."""

    def __init__(self, network: FullyConvolutional):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        scores = self.network(images)
        return scores.mean((2, 3), dtype=torch.promote_types(scores.dtype, torch.float32))


def fully_convolutional(network: nn.Module, *, image_size: int, name: str = "the network") -> FullyConvolutional:
    """`network` as convolutions, in eval mode, sharing its weights; `image_size` is the side it was built for.

    Score (i, j) is what the classifier says of the window at (i, j) of the last feature maps, as large as the whole
    of them at image_size: global average pooling becomes an average over such windows with stride 1. At the border
    of a window the features see the image where a crop of it would be padded with zeros.
    Raises UserError for a network whose head is not one of linear layers over features, maybe pooled to their mean
    (AlexNet, ZFNet, VGG, GoogLeNet, ResNet and its kin are such), and where the two do not agree on an image.
    """
    network = network.eval()
    images = _random_image(network, image_size)
    try:
        features, head = _parts(network)
        with torch.no_grad():
            shape = features(images).shape[1:]
        converted = FullyConvolutional(features, nn.Sequential(*_convolutions(_flat(head), tuple(shape)))).eval()
        with torch.no_grad():
            scores, logits = converted(images), network(images)
        is_same = scores.shape == (*logits.shape, 1, 1)
        if not is_same or (scores.flatten(1) - logits).abs().max() > TOLERANCE * logits.abs().max():
            raise _Unconvertible("its head does more than its layers say")
    except _Unconvertible as error:
        raise UserError(
            f"{name} cannot be made fully convolutional: {error}; choose another protocol than dense, or another model"
        ) from error
    score_in_float32(converted.head, num_classes=logits.shape[1])
    return converted


def largest_layer_bytes(network: nn.Module, height: int, width: int) -> int:
    """Float32 bytes of what goes into and comes out of the layer where that is most, for one image of this size.

    Of shapes alone (torch's meta device): nothing is computed. A pass holds at least this much.
    """
    found = [0]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(sum(value.numel() * 4 for value in (*inputs, output) if isinstance(value, Tensor)))

    layers = [layer for layer in network.modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note) for layer in layers]
    shapes = {name: value.to("meta") for name, value in (*network.named_parameters(), *network.named_buffers())}
    try:
        with torch.no_grad():
            functional_call(network, shapes, (torch.empty(1, 3, height, width, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
    return max(found)


class _Unconvertible(Exception):
    """Why a network has no convolutional form."""


def _parts(network: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The layers that give maps, and the layers of the head behind them."""
    children = dict(network.named_children())
    if {"features", "classifier"} <= set(children) and not hasattr(network, "forward_features"):
        between = [children[name] for name in ("avgpool", "pool", "global_pool") if name in children]
        return children["features"], [*between, children["classifier"]]
    if isinstance(network, torchvision.models.ResNet):
        return nn.Sequential(*list(children.values())[:-2]), [children["avgpool"], children["fc"]]
    if hasattr(network, "forward_features") and hasattr(network, "get_classifier") and "global_pool" in children:
        return _Features(network), [children["global_pool"], network.get_classifier()]  # type: ignore[operator]
    raise _Unconvertible("its features and its head are not told apart")


class _Features(nn.Module):
    """The forward_features of timm's networks, and ours like them, as a module."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images)  # type: ignore[operator]


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        yield from _flat(layer) if isinstance(layer, nn.Sequential) else [layer]


def _convolutions(head: Iterable[nn.Module], shape: Shape) -> list[nn.Module]:
    """The head's layers for maps of any size; `shape` is that of the features at the native size."""
    if len(shape) != 3:
        raise _Unconvertible("its features are no maps")
    num_maps, *window = shape
    layers: list[nn.Module] = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            if layer.in_features != num_maps * window[0] * window[1]:
                raise _Unconvertible(f"a layer of {layer.in_features} inputs does not read its {list(shape)} features")
            layers.append(_convolution(layer, (num_maps, window[0], window[1])))
            num_maps, window = layer.out_features, [1, 1]
        elif _averages(layer, window):
            layers.append(nn.AvgPool2d((window[0], window[1]), stride=1))
            window = [1, 1]
        elif _keeps(layer, window):
            continue
        elif any(True for _ in layer.parameters()) or any(True for _ in layer.children()):
            raise _Unconvertible(f"its head holds a {type(layer).__name__}")
        else:
            layers.append(layer)  # a nonlinearity or dropout, which treat every number alike
    return layers


def _convolution(layer: nn.Linear, shape: Shape) -> nn.Conv2d:
    """A linear layer over flattened maps of `shape` as a convolution over larger ones; the same weights in memory."""
    convolution = nn.Conv2d(shape[0], layer.out_features, shape[1:], bias=layer.bias is not None, device="meta")
    convolution.weight = nn.Parameter(layer.weight.detach().unflatten(1, shape))
    convolution.bias = layer.bias
    return convolution


def _averages(layer: nn.Module, window: list[int]) -> bool:
    """Whether the layer takes the mean over all that it sees at the native size."""
    if isinstance(layer, nn.AvgPool2d):
        return _pair(layer.kernel_size) == window and _pair(layer.padding) == [0, 0]
    if isinstance(layer, SelectAdaptivePool2d):
        return layer.pool_type in ("avg", "fast", "fastavg")
    return isinstance(layer, nn.AdaptiveAvgPool2d) and _pair(layer.output_size) == [1, 1]


def _keeps(layer: nn.Module, window: list[int]) -> bool:
    """Whether the layer changes nothing, or only the shape, at the native size."""
    is_same_size = isinstance(layer, nn.AdaptiveAvgPool2d) and _pair(layer.output_size) == window
    return is_same_size or isinstance(layer, (nn.Flatten, nn.Identity))


def _pair(size: object) -> list[object]:
    return list(size) if isinstance(size, (tuple, list)) else [size, size]


def _random_image(network: nn.Module, image_size: int) -> Tensor:
    """[1, 3, image_size, image_size] on the network's device, the same at every call."""
    weight = next(network.parameters())
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return image.to(weight.device, weight.dtype)

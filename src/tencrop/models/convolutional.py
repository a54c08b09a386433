"""Convert a classifier to a fully-convolutional network, which gives a map of scores for larger images.

A linear layer that reads C maps of h x w is a convolution with an h x w kernel; the linear layers after it are 1 x 1
convolutions (Sermanet et al. 2014; Simonyan and Zisserman 2015, section 3.2). Used by dense evaluation (inference.py).
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

TOLERANCE = 1e-3  # relative to the largest score: far above rounding errors, far below what a wrong conversion gives
Shape = tuple[int, int, int]  # maps, height, width


class FullyConvolutional(nn.Module):
    """[N, 3, H, W] -> scores [N, K, h, w]; h = w = 1 for images of the size at which it was converted."""

    def __init__(self, features: nn.Module, head: nn.Sequential):
        super().__init__()
        self.features, self.head = features, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class MeanScores(nn.Module):
    """[N, 3, H, W] -> logits [N, K]: scores of a fully-convolutional network, averaged over positions."""

    def __init__(self, network: FullyConvolutional):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        scores = self.network(images)
        # averaging in bfloat16 would round the logits again; float64 scores stay float64
        return scores.mean((2, 3), dtype=torch.promote_types(scores.dtype, torch.float32))


def fully_convolutional(network: nn.Module, *, image_size: int, name: str = "the network") -> FullyConvolutional:
    """Convert `network` to convolutions in eval mode; the weights are shared. `image_size` is its native size.

    Score (i, j) is the classifier's output for the window at (i, j) of the last feature maps. The window is as large as
    those maps are at image_size; global average pooling becomes average pooling over it with stride 1. Scores differ
    slightly from those of a crop: at the window's border the features read the surrounding image, not zero padding.

    Supports networks whose head consists of linear layers, optionally after average pooling (AlexNet, ZFNet, VGG,
    GoogLeNet, ResNet and its variants). Raises UserError for others, and if the converted network gives different
    logits on a test image.
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
        # Names of submodules do not reveal what forward() does between them, so compare the outputs
        is_same = scores.shape == (*logits.shape, 1, 1)
        if not is_same or (scores.flatten(1) - logits).abs().max() > TOLERANCE * logits.abs().max():
            raise _Unconvertible("its forward pass does more than call its layers")
    except _Unconvertible as error:
        raise UserError(
            f"{name} cannot be made fully convolutional: {error}; choose another protocol than dense, or another model"
        ) from error
    score_in_float32(converted.head, num_classes=logits.shape[1])
    return converted


def largest_layer_bytes(network: nn.Module, height: int, width: int) -> int:
    """Lower bound of a forward pass's memory for one image: the largest layer's inputs and outputs in float32 bytes.

    Runs on torch's meta device: shapes only, nothing is computed or allocated.
    """
    found = [0]

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(sum(value.numel() * 4 for value in (*inputs, output) if isinstance(value, Tensor)))

    layers = [layer for layer in network.modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note) for layer in layers]
    # functional_call substitutes meta tensors without a copy of the network, which may be large and on the GPU
    shapes = {name: value.to("meta") for name, value in (*network.named_parameters(), *network.named_buffers())}
    try:
        with torch.no_grad():
            functional_call(network, shapes, (torch.empty(1, 3, height, width, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
    return max(found)


class _Unconvertible(Exception):
    """The network has no fully-convolutional form; the message is the reason."""


def _parts(network: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Split a network into its feature layers, which output maps, and the layers of its head."""
    children = dict(network.named_children())
    # torchvision's AlexNet and VGG, and most of ours; timm's networks with these submodules are handled below
    if {"features", "classifier"} <= set(children) and not hasattr(network, "forward_features"):
        between = [children[name] for name in ("avgpool", "pool", "global_pool") if name in children]
        return children["features"], [*between, children["classifier"]]
    if isinstance(network, torchvision.models.ResNet):  # [:-2] drops avgpool and fc; forward flattens between them
        return nn.Sequential(*list(children.values())[:-2]), [children["avgpool"], children["fc"]]
    if hasattr(network, "forward_features") and hasattr(network, "get_classifier") and "global_pool" in children:
        # timm's interface; a head with more layers than these fails the comparison of outputs
        return _Features(network), [children["global_pool"], network.get_classifier()]  # type: ignore[operator]
    raise _Unconvertible("its features and head cannot be separated")


class _Features(nn.Module):
    """forward_features of a timm-like network as a module."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images)  # type: ignore[operator]


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Layers with nested Sequentials expanded."""
    for layer in layers:
        yield from _flat(layer) if isinstance(layer, nn.Sequential) else [layer]


def _convolutions(head: Iterable[nn.Module], shape: Shape) -> list[nn.Module]:
    """Convert the head's layers for maps of any size; `shape` is that of the features at the native size."""
    if len(shape) != 3:
        raise _Unconvertible("its features are not maps")
    num_maps, *window = shape  # window: what the next layer reads of the maps; 1 x 1 after a linear layer or pooling
    layers: list[nn.Module] = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            if layer.in_features != num_maps * window[0] * window[1]:
                raise _Unconvertible(f"a layer of {layer.in_features} inputs cannot read its {list(shape)} features")
            layers.append(_convolution(layer, (num_maps, window[0], window[1])))
            num_maps, window = layer.out_features, [1, 1]
        elif _averages(layer, window):
            layers.append(nn.AvgPool2d((window[0], window[1]), stride=1))
            window = [1, 1]
        elif _keeps(layer, window):
            continue
        # anything else with weights or submodules may mix positions, which must stay separate here
        elif any(True for _ in layer.parameters()) or any(True for _ in layer.children()):
            raise _Unconvertible(f"its head contains a {type(layer).__name__}")
        else:
            layers.append(layer)  # elementwise: a nonlinearity or dropout
    return layers


def _convolution(layer: nn.Linear, shape: Shape) -> nn.Conv2d:
    """Turn a linear layer over flattened maps of `shape` into a convolution that shares its memory."""
    # on the meta device: the constructor's own weights are never allocated (VGG's fc6 has 411 MB)
    convolution = nn.Conv2d(shape[0], layer.out_features, shape[1:], bias=layer.bias is not None, device="meta")
    convolution.weight = nn.Parameter(layer.weight.detach().unflatten(1, shape))
    convolution.bias = layer.bias
    return convolution


def _averages(layer: nn.Module, window: list[int]) -> bool:
    """Whether the layer averages over all positions at the native size."""
    if isinstance(layer, nn.AvgPool2d):
        return _pair(layer.kernel_size) == window and _pair(layer.padding) == [0, 0]
    if isinstance(layer, SelectAdaptivePool2d):
        return layer.pool_type in ("avg", "fast", "fastavg")
    return isinstance(layer, nn.AdaptiveAvgPool2d) and _pair(layer.output_size) == [1, 1]


def _keeps(layer: nn.Module, window: list[int]) -> bool:
    """Whether the layer is an identity at the native size, apart from the shape of its output."""
    is_same_size = isinstance(layer, nn.AdaptiveAvgPool2d) and _pair(layer.output_size) == window
    return is_same_size or isinstance(layer, (nn.Flatten, nn.Identity))


def _pair(size: object) -> list[object]:
    return list(size) if isinstance(size, (tuple, list)) else [size, size]


def _random_image(network: nn.Module, image_size: int) -> Tensor:
    """[1, 3, image_size, image_size] on the network's device, the same at every call."""
    weight = next(network.parameters())
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return image.to(weight.device, weight.dtype)

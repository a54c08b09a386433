"""One forward pass of a network, call by call: which module gave what. Called by the figures that look inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import UserError

Shape = tuple[int, ...]


class HasNone(UserError):
    """A network that has nothing of the kind that a figure shows."""


class Call(NamedTuple):
    """A module was called; shapes are those of its first tensors."""

    name: str  # dotted, as in named_modules
    module: nn.Module
    input: Shape
    output: Shape


def trace(network: nn.Module, images: Tensor) -> list[Call]:
    """Every call of a submodule in one forward pass in eval mode, in the order in which they began."""
    calls: list[Call | None] = []
    open_calls: list[int] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        open_calls.append(len(calls))
        calls.append(None)

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        position = open_calls.pop()
        calls[position] = Call(names[module], module, _shape(inputs), _shape(output))

    names = {module: name for name, module in network.named_modules() if name}
    with _hooks([*(m.register_forward_pre_hook(begin) for m in names), *(m.register_forward_hook(end) for m in names)]):
        run_frozen(network, images)
    assert not open_calls, "a module raised"
    return [call for call in calls if call is not None]


def run_frozen(network: nn.Module, images: Tensor) -> Tensor:
    """The network's logits in eval mode, without gradients; its mode is as before afterwards."""
    was_training = network.training
    try:
        with torch.no_grad():
            return network.eval()(images)
    finally:
        network.train(was_training)


def last_maps(calls: list[Call]) -> Call:
    """The last call that gave maps of more than one pixel: the final features of a convolutional network.

    Of calls within each other that gave the same maps it is the outermost. Raises HasNone without any, and for maps
    that have their channels last, as Swin's.
    """
    found = [call for call in calls if len(call.output) == 4 and min(call.output[2:]) > 1]
    if not found:
        raise HasNone("no layer of the network gives maps, which this figure needs; choose another figure")
    last = found[-1]
    if last.output[1] == last.output[2] != last.output[3]:
        raise HasNone(f"{last.name} gives maps with their channels last, which this figure cannot read; choose another")
    outer = [call for call in found if last.name.startswith(f"{call.name}.") and call.output == last.output]
    return outer[0] if outer else last


def classifying_layer(calls: list[Call]) -> Call:
    """The last call of a layer with weights (or fixed codes, as LeNet-5's): what it reads is the last hidden layer."""
    is_leaf = [not list(call.module.children()) for call in calls]
    return [
        call
        for call, leaf in zip(calls, is_leaf, strict=True)
        if leaf and has_weights(call.module) and not isinstance(call.module, (_BatchNorm, nn.LayerNorm))
    ][-1]


def has_weights(module: nn.Module) -> bool:
    """Whether it holds anything that was learned, or is fixed like LeNet-5's codes."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


@contextmanager
def captured(module: nn.Module, read: Callable[[Any, Any], Tensor]) -> Iterator[list[Tensor]]:
    """A list that `read`(inputs, output) of every call of the module is appended to."""
    found: list[Tensor] = []
    with _hooks([module.register_forward_hook(lambda _, inputs, output: found.append(read(inputs, output)))]):
        yield found


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape(value: Any) -> Shape:
    """Shape of the first tensor in a tensor, list, tuple or dict of them; empty without one."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((shape for item in values if (shape := _shape(item))), ())

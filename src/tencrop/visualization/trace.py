"""Record a forward pass call by call with hooks: which module was called, with which shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import UserError

Shape = tuple[int, ...]


class NotApplicable(UserError):
    """The network lacks what a figure shows, such as attention; figure=all skips the figure."""


class Call(NamedTuple):
    """One call of a module; the shapes are those of the first input and output tensor."""

    name: str  # dotted, as in named_modules
    module: nn.Module
    input: Shape
    output: Shape


def trace(network: nn.Module, images: Tensor) -> list[Call]:
    """Return every submodule call of one forward pass in eval mode, in the order in which the calls began."""
    calls: list[Call | None] = []
    open_calls: list[int] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        open_calls.append(len(calls))
        calls.append(None)  # reserves the position: an outer call begins before its inner calls, but ends after them

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        position = open_calls.pop()
        calls[position] = Call(names[module], module, _shape(inputs), _shape(output))

    # by module, not by name: a module that is registered twice is still one
    names = {module: name for name, module in network.named_modules() if name}
    with _hooks([*(m.register_forward_pre_hook(begin) for m in names), *(m.register_forward_hook(end) for m in names)]):
        run_frozen(network, images)
    assert not open_calls, "a module raised"  # and somebody caught it, so that its end was never seen
    return [call for call in calls if call is not None]


def run_frozen(network: nn.Module, images: Tensor) -> Tensor:
    """Run the network in eval mode without gradients and return its logits; restores its mode afterward."""
    was_training = network.training
    try:
        with torch.no_grad():
            return network.eval()(images)
    finally:
        network.train(was_training)


def last_maps(calls: list[Call]) -> Call:
    """Return the last call whose output is maps of more than one pixel: the final features of a ConvNet.

    Of nested calls with the same output, returns the outermost. Raises NotApplicable if there is none, and for maps
    with channels last (Swin).
    """
    found = [call for call in calls if len(call.output) == 4 and min(call.output[2:]) > 1]
    if not found:
        raise NotApplicable("no layer of the network outputs maps, which this figure needs; choose another figure")
    last = found[-1]
    if last.output[1] == last.output[2] != last.output[3]:
        raise NotApplicable(
            f"{last.name} outputs maps with channels last, which this figure cannot read; choose another"
        )
    # the outermost: a residual block's own output, after the addition, rather than that of its last ReLU
    outer = [call for call in found if last.name.startswith(f"{call.name}.") and call.output == last.output]
    return outer[0] if outer else last


def classifying_layer(calls: list[Call]) -> Call:
    """Return the last call of a layer with weights (or fixed codes, as in LeNet-5); it reads the last hidden layer."""
    is_leaf = [not list(call.module.children()) for call in calls]
    return [
        call
        for call, leaf in zip(calls, is_leaf, strict=True)
        # a normalization after the last linear layer would have weights, too
        if leaf and has_weights(call.module) and not isinstance(call.module, (_BatchNorm, nn.LayerNorm))
    ][-1]


def has_weights(module: nn.Module) -> bool:
    """Whether the module has parameters or buffers (such as LeNet-5's fixed codes)."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


@contextmanager
def captured(module: nn.Module, read: Callable[[Any, Any], Tensor]) -> Iterator[list[Tensor]]:
    """Yield a list that collects `read(inputs, output)` of every call of the module."""
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
    # depth first: networks return nested structures, such as logits with a list of features
    return next((shape for item in values if (shape := _shape(item))), ())

"""Typed access to what mypy sees as a union: layers of a network by their name, and values that may be None."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)
Value = TypeVar("Value")


def layer_at(network: nn.Module, name: str, kind: type[Layer]) -> Layer:
    """The layer with this dotted name, such as features.conv1; AssertionError if it is of another kind."""
    layer = network.get_submodule(name)
    assert isinstance(layer, kind), f"{name} is {type(layer).__name__}, not {kind.__name__}"
    return layer


def present(value: Value | None) -> Value:
    """The value; AssertionError if it is None."""
    assert value is not None
    return value

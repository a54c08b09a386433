"""Typed access to what mypy sees as a union: layers of a network, values that may be None; typed stand-ins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TypeVar, cast

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


def stand_in(kind: type[Value], **attributes: object) -> Value:
    """An object that passes for a `kind` of which the code under test reads these attributes only."""
    return cast(Value, SimpleNamespace(**attributes))

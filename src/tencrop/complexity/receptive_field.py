"""Which pixels of the image a unit can see: receptive fields carried through every operation of a forward pass.

field_rules.py has the rule of each operation, and fields.py follows a forward pass. A field is exact, in pixels, for
each axis of the image by itself: unit i of an axis sees [start + i jump, start + i jump + size - 1], pixels outside of
the image (padding) included. Where branches meet, it is the smallest window over all of them (the maximum over all
paths).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """What the units along an axis see of it; jump 0: one window for all, the axis is gone."""

    size: int
    jump: int
    start: int

    @property
    def center(self) -> float:
        """Of the first unit's window, in pixels from the image's first, which lies at 0."""
        return self.start + (self.size - 1) / 2


class Factor(NamedTuple):
    """A part of a tensor's dimension: so many steps along an axis of the image ("h", "w") or of no axis."""

    size: int
    axis: str | None = None


Dimension = tuple[Factor, ...]  # the factors whose product is the dimension's size


@dataclass(frozen=True)
class Field:
    """A tensor's receptive field. is_gated: numbers that saw the whole image scale it too (squeeze-and-excitation)."""

    dims: tuple[Dimension, ...]
    windows: dict[str, Window]
    is_gated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(factor.size for factor in dim) for dim in self.dims)


class Mixed(Exception):
    """No window describes what the operation's units see."""


def image_field(images: Tensor) -> Field:
    """The field of [N, C, H, W] images: every pixel sees itself."""
    num, channels, height, width = images.shape
    dims = ((Factor(num),), (Factor(channels),), (Factor(height, "h"),), (Factor(width, "w"),))
    return Field(dims, {"h": Window(1, 1, 0), "w": Window(1, 1, 0)})


def union(fields: Sequence[Field]) -> Field:
    """The field of something that reads several tensors of the same dimensions."""
    first = fields[0]
    windows, is_gated = dict(first.windows), any(field.is_gated for field in fields)
    for field in fields[1:]:
        for axis, other in field.windows.items():
            mine = windows[axis]
            if mine.jump == other.jump:
                start = min(mine.start, other.start)
                end = max(mine.start + mine.size, other.start + other.size)
                windows[axis] = Window(end - start, mine.jump, start)
            elif mine.jump and not other.jump:
                is_gated = True
            else:
                raise Mixed
    return Field(first.dims, windows, is_gated)


def pointwise(fields: list[Field], shape: tuple[int, ...]) -> Field:
    """Behind an operation on numbers at the same place; tensors of fewer numbers than `shape` are broadcast."""
    whole = [field for field in fields if field.shape == shape]
    if not whole:  # broadcast
        return union([expanded(field, shape) for field in fields])
    if any(_axes(field) != _axes(whole[0]) for field in whole):
        raise Mixed
    return union([*whole, *(field for field in fields if field.shape != shape)])


def _axes(field: Field) -> list[list[str]]:
    return [[factor.axis for factor in dim if factor.axis] for dim in field.dims]


def slid(field: Field, dim: int, size: int, *, kernel: int, stride: int, padding: int, dilation: int = 1) -> Field:
    """Behind a window that slides along dimension `dim` and leaves `size` units."""
    factor = only(field.dims[dim])
    dims = (*field.dims[:dim], (Factor(size, factor.axis),), *field.dims[dim + 1 :])
    windows = field.windows
    if factor.axis is not None:
        window = windows[factor.axis]
        reach, start = (kernel - 1) * dilation * window.jump, window.start - padding * window.jump
        windows = windows | {factor.axis: Window(window.size + reach, window.jump * stride, start)}
    return replace(field, dims=dims, windows=windows)


def only(dim: Dimension) -> Factor:
    """A dimension as one factor; Mixed where it holds an axis of the image beside others."""
    if sum(factor.axis is not None for factor in dim) > (len(dim) == 1):
        raise Mixed
    return dim[0] if len(dim) == 1 else Factor(math.prod(factor.size for factor in dim))


def collapsed(field: Field, dims: Sequence[int], keep: bool) -> Field:
    """Behind a sum over whole dimensions."""
    windows = dict(field.windows)
    for dim in dims:
        for factor in field.dims[dim]:
            if factor.axis is not None:
                window = windows[factor.axis]
                windows[factor.axis] = Window(window.size + (factor.size - 1) * window.jump, 0, window.start)
    summed = {dim % len(field.dims) for dim in dims}
    left = [(Factor(1),) if d in summed else dim for d, dim in enumerate(field.dims) if keep or d not in summed]
    return replace(field, dims=tuple(left), windows=windows)


def expanded(field: Field, shape: tuple[int, ...]) -> Field:
    """Repeated along new dimensions and along those of size 1."""
    new = len(shape) - len(field.dims)
    dims: list[Dimension] = [(Factor(size),) for size in shape[:new]]
    for dim, size in zip(field.dims, shape[new:], strict=True):
        dims.append(dim if math.prod(factor.size for factor in dim) == size else (Factor(size),))
    return replace(field, dims=tuple(dims))

"""Exact theoretical receptive fields: data types and the operations that all rules share.

field_rules.py has one rule per operation; fields.py applies them during a forward pass. A field is exact in pixels and
separate for each axis of the image: unit i along an axis depends on [start + i * jump, start + i * jump + size - 1],
including pixels outside the image (padding). Where branches join, the field is the smallest window that contains those
of all branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """Receptive field along one axis of the image; jump 0: the axis was reduced, all units share one window."""

    size: int
    jump: int
    start: int

    @property
    def center(self) -> float:
        """Center of the first unit's window; the image's first pixel is at 0."""
        return self.start + (self.size - 1) / 2


class Factor(NamedTuple):
    """Part of a tensor's dimension: `size` steps along an axis of the image ("h" or "w"), or along none."""

    size: int
    axis: str | None = None


# Factors whose product is the dimension's size. A ViT flattens its patches to one dimension of two factors, h and w;
# without factors, a later view back to maps would lose the windows.
Dimension = tuple[Factor, ...]


@dataclass(frozen=True)
class Field:
    """Receptive field of a tensor.

    is_gated: the values are also scaled by numbers that depend on the whole image (squeeze-and-excitation).
    """

    dims: tuple[Dimension, ...]
    windows: dict[str, Window]
    is_gated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(factor.size for factor in dim) for dim in self.dims)


class Mixed(Exception):
    """No window describes the receptive field of the operation's output."""


def image_field(images: Tensor) -> Field:
    """Field of images [N, C, H, W]: every pixel depends on itself."""
    num, channels, height, width = images.shape
    dims = ((Factor(num),), (Factor(channels),), (Factor(height, "h"),), (Factor(width, "w"),))
    return Field(dims, {"h": Window(1, 1, 0), "w": Window(1, 1, 0)})


def union(fields: Sequence[Field]) -> Field:
    """Field of a value computed from several tensors with the same dimensions."""
    first = fields[0]
    windows, is_gated = dict(first.windows), any(field.is_gated for field in fields)
    for field in fields[1:]:
        for axis, other in field.windows.items():
            mine = windows[axis]
            if mine.jump == other.jump:  # branches with the same stride: the smallest window around both
                start = min(mine.start, other.start)
                end = max(mine.start + mine.size, other.start + other.size)
                windows[axis] = Window(end - start, mine.jump, start)
            elif mine.jump and not other.jump:  # the other was pooled globally: a gate, reported apart
                is_gated = True
            else:
                raise Mixed
    return Field(first.dims, windows, is_gated)


def pointwise(fields: list[Field], shape: tuple[int, ...]) -> Field:
    """Field after an elementwise operation with output `shape`; smaller tensors are broadcast."""
    whole = [field for field in fields if field.shape == shape]
    if not whole:  # all are broadcast, such as a row plus a column
        return union([expanded(field, shape) for field in fields])
    if any(_axes(field) != _axes(whole[0]) for field in whole):
        raise Mixed  # the sum of an image and its transpose, for example
    return union([*whole, *(field for field in fields if field.shape != shape)])


def _axes(field: Field) -> list[list[str]]:
    return [[factor.axis for factor in dim if factor.axis] for dim in field.dims]


def slid(field: Field, dim: int, size: int, *, kernel: int, stride: int, padding: int, dilation: int = 1) -> Field:
    """Field after a sliding window along dimension `dim` with `size` outputs."""
    factor = only(field.dims[dim])
    dims = (*field.dims[:dim], (Factor(size, factor.axis),), *field.dims[dim + 1 :])
    windows = field.windows
    if factor.axis is not None:
        # the recurrence of receptive fields: size grows by (kernel - 1) jumps, the jump by the stride
        window = windows[factor.axis]
        reach, start = (kernel - 1) * dilation * window.jump, window.start - padding * window.jump
        windows = windows | {factor.axis: Window(window.size + reach, window.jump * stride, start)}
    return replace(field, dims=dims, windows=windows)


def only(dim: Dimension) -> Factor:
    """Merge a dimension into one factor; raises Mixed if it combines an axis of the image with other factors."""
    if sum(factor.axis is not None for factor in dim) > (len(dim) == 1):
        raise Mixed
    return dim[0] if len(dim) == 1 else Factor(math.prod(factor.size for factor in dim))


def collapsed(field: Field, dims: Sequence[int], keep: bool) -> Field:
    """Field after a reduction over whole dimensions."""
    windows = dict(field.windows)
    for dim in dims:
        for factor in field.dims[dim]:
            if factor.axis is not None:
                # the union of the windows of all units along the axis
                window = windows[factor.axis]
                windows[factor.axis] = Window(window.size + (factor.size - 1) * window.jump, 0, window.start)
    summed = {dim % len(field.dims) for dim in dims}
    # keepdim leaves dimensions of size 1, otherwise they disappear
    left = [(Factor(1),) if d in summed else dim for d, dim in enumerate(field.dims) if keep or d not in summed]
    return replace(field, dims=tuple(left), windows=windows)


def expanded(field: Field, shape: tuple[int, ...]) -> Field:
    """Field after broadcasting to `shape`: repeated along new dimensions and those of size 1."""
    new = len(shape) - len(field.dims)
    dims: list[Dimension] = [(Factor(size),) for size in shape[:new]]
    for dim, size in zip(field.dims, shape[new:], strict=True):
        dims.append(dim if math.prod(factor.size for factor in dim) == size else (Factor(size),))
    return replace(field, dims=tuple(dims))

"""Exact theoretical receptive fields: data types and the operations that all rules share.

field_rules.py has one rule per operation; fields.py applies them during a forward pass. Receptive fields are exact to
the pixel, and computed for each image axis separately: unit i along an axis depends on the pixels from start + i * jump
to start + i * jump + size - 1, some of which may be padding outside the image. Where branches join, the receptive field
is the smallest window that contains the windows of all branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """Receptive field along one image axis, in pixels; `jump` is the distance between neighboring units (total stride).

    A jump of 0 means that the axis was reduced, for example by global pooling: all outputs share one window.
    """

    size: int
    jump: int
    start: int

    @property
    def center(self) -> float:
        """Center of the first unit's window, in pixels from the center of the image's first pixel."""
        return self.start + (self.size - 1) / 2


class Factor(NamedTuple):
    """One factor of a tensor dimension's size; `axis` is the image axis that it runs along ("h", "w" or None)."""

    size: int
    axis: str | None = None


# The product of the factors is the dimension's size. A ViT flattens its patches into one dimension with two factors, h
# and w. Without factors, a later reshape back to feature maps could not recover the windows.
Dimension = tuple[Factor, ...]


@dataclass(frozen=True)
class Field:
    """Receptive field of the units of a tensor.

    windows: by image axis, "h" and "w".
    is_gated: the values are also multiplied by gates that depend on the whole image (squeeze-and-excitation).
    """

    dims: tuple[Dimension, ...]
    windows: dict[str, Window]
    is_gated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(factor.size for factor in dim) for dim in self.dims)


class NoReceptiveField(Exception):
    """Raised if no window per image axis can describe the receptive field of an operation's output."""


def image_field(images: Tensor) -> Field:
    """Receptive field of input images [N, C, H, W]: every pixel depends on itself only."""
    num, channels, height, width = images.shape
    dims = ((Factor(num),), (Factor(channels),), (Factor(height, "h"),), (Factor(width, "w"),))
    return Field(dims, {"h": Window(1, 1, 0), "w": Window(1, 1, 0)})


def union(fields: Sequence[Field]) -> Field:
    """Field of a value computed from several tensors with the same dimensions."""
    first = fields[0]
    windows, is_gated = dict(first.windows), any(field.is_gated for field in fields)
    for field in fields[1:]:
        for axis, other in field.windows.items():
            window = windows[axis]
            if window.jump == other.jump:  # branches with the same total stride: the smallest window that contains both
                start = min(window.start, other.start)
                end = max(window.start + window.size, other.start + other.size)
                windows[axis] = Window(end - start, window.jump, start)
            elif window.jump and not other.jump:  # the other was globally pooled: a gate, reported separately
                is_gated = True
            else:
                raise NoReceptiveField
    return Field(first.dims, windows, is_gated)


def pointwise(fields: list[Field], shape: tuple[int, ...]) -> Field:
    """Field after an elementwise operation on `fields` with output `shape`; smaller operands are broadcast."""
    whole = [field for field in fields if field.shape == shape]
    if not whole:  # all operands are broadcast, such as a row plus a column
        return union([broadcast(field, shape) for field in fields])
    if any(_axes(field) != _axes(whole[0]) for field in whole):
        raise NoReceptiveField  # the sum of an image and its transpose, for example
    return union([*whole, *(field for field in fields if field.shape != shape)])


def _axes(field: Field) -> list[list[str]]:
    return [[factor.axis for factor in dim if factor.axis] for dim in field.dims]


def slide_window(
    field: Field, dim: int, size: int, *, kernel: int, stride: int, padding: int, dilation: int = 1
) -> Field:
    """Field after a convolution or pooling window slides along dimension `dim` and gives `size` outputs."""
    factor = merge_factors(field.dims[dim])
    dims = (*field.dims[:dim], (Factor(size, factor.axis),), *field.dims[dim + 1 :])
    windows = field.windows
    if factor.axis is not None:
        # the usual recurrence: size grows by dilation * (kernel - 1) * jump, and jump is multiplied by the stride
        window = windows[factor.axis]
        reach, start = (kernel - 1) * dilation * window.jump, window.start - padding * window.jump
        windows = windows | {factor.axis: Window(window.size + reach, window.jump * stride, start)}
    return replace(field, dims=dims, windows=windows)


def merge_factors(dim: Dimension) -> Factor:
    """Merge the factors of a dimension into one; raises NoReceptiveField if an image axis is one of several factors."""
    if sum(factor.axis is not None for factor in dim) > (len(dim) == 1):
        raise NoReceptiveField
    return dim[0] if len(dim) == 1 else Factor(math.prod(factor.size for factor in dim))


def reduce_dims(field: Field, dims: Sequence[int], keep: bool) -> Field:
    """Field after a reduction, such as a mean, over all of the dimensions `dims`."""
    windows = dict(field.windows)
    for dim in dims:
        for factor in field.dims[dim]:
            if factor.axis is not None:
                # the union of the windows of all units along the axis
                window = windows[factor.axis]
                windows[factor.axis] = Window(window.size + (factor.size - 1) * window.jump, 0, window.start)
    summed = {dim % len(field.dims) for dim in dims}
    # with keepdim, reduced dimensions keep size 1; otherwise they are removed
    left = [(Factor(1),) if d in summed else dim for d, dim in enumerate(field.dims) if keep or d not in summed]
    return replace(field, dims=tuple(left), windows=windows)


def broadcast(field: Field, shape: tuple[int, ...]) -> Field:
    """Field after broadcasting to `shape`: repeated along new dimensions and those of size 1."""
    new = len(shape) - len(field.dims)
    dims: list[Dimension] = [(Factor(size),) for size in shape[:new]]
    for dim, size in zip(field.dims, shape[new:], strict=True):
        dims.append(dim if math.prod(factor.size for factor in dim) == size else (Factor(size),))
    return replace(field, dims=tuple(dims))

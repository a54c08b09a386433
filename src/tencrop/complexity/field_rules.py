"""One rule per torch operation: the receptive field of its output, given those of its inputs.

fields.py calls a rule with `known` (which returns a tensor's field or None), the operation's output and its arguments.
A rule returns the output's field, or a list of them for several outputs, and raises NoReceptiveField if no window
describes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tencrop.complexity.receptive_field import (
    Dimension,
    Factor,
    Field,
    NoReceptiveField,
    Window,
    broadcast,
    merge_factors,
    pointwise,
    reduce_dims,
    slide_window,
    union,
)

aten = torch.ops.aten
Known = Callable[[Any], Field | None]
# elementwise operations that torch does not tag as such; BatchNorm is one in eval mode, with its fixed statistics
UNCHANGED = {aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.native_dropout, aten.clone,
             aten._to_copy, aten.detach, aten.alias, aten.contiguous, aten.bernoulli, aten.hardswish, aten.hardtanh,
             aten._prelu_kernel}  # fmt: skip


def _spread(value: Any, num: int) -> list[int]:
    """Expand an int or a list of one to `num` values, as torch does for kernel sizes and strides."""
    values = [value] if isinstance(value, int) else list(value)
    return values * num if len(values) == 1 else values


def _convolution(known: Known, output, x, weight, bias, stride, padding, dilation, transposed, *_) -> Field:
    field, num = known(x), weight.dim() - 2
    if field is None or transposed:
        raise NoReceptiveField  # the image is in the kernel (dynamic convolution), or a transposed convolution
    strides, paddings, dilations = (_spread(value, num) for value in (stride, padding, dilation))
    for axis in range(num):
        dim = x.dim() - num + axis
        field = slide_window(field, dim, output.shape[dim], kernel=weight.shape[2 + axis], stride=strides[axis],
                      padding=paddings[axis], dilation=dilations[axis])  # fmt: skip
    if any(factor.axis for factor in field.dims[1]):  # an axis was moved into the channels, which are all summed
        field = reduce_dims(field, [1], keep=True)
    return replace(field, dims=(field.dims[0], (Factor(weight.shape[0]),), *field.dims[2:]))


def _pooling(num: int) -> Callable[..., Any]:
    def rule(known: Known, output, x, kernel, stride=(), padding=0, *rest: Any, **_: Any) -> Field:
        field, first = known(x), output if isinstance(output, Tensor) else output[0]
        assert field is not None
        kernels, paddings = _spread(kernel, num), _spread(padding, num)
        strides = _spread(stride, num) if stride else kernels
        # max pooling returns (maxima, indices) and is the only pooling with a dilation
        is_maximum = not isinstance(output, Tensor)
        dilations = _spread(rest[0], num) if is_maximum and rest else [1] * num
        for axis in range(num):
            dim = x.dim() - num + axis
            # avg_pool3d over maps (response normalization) has kernel 1 along the image's axes
            if kernels[axis] > 1 or strides[axis] > 1:
                field = slide_window(field, dim, first.shape[dim], kernel=kernels[axis], stride=strides[axis],
                              padding=paddings[axis], dilation=dilations[axis])  # fmt: skip
        return field

    return rule


def _adaptive(known: Known, output, x, sizes) -> Field:
    field = known(x)
    assert field is not None
    for dim, size in zip((-2, -1), sizes, strict=True):
        if x.shape[dim] % size:
            raise NoReceptiveField  # windows would differ in size
        kernel = x.shape[dim] // size  # equal windows side by side: kernel = stride
        field = slide_window(field, x.dim() + dim, size, kernel=kernel, stride=kernel, padding=0)
    return field


def _reduction(known: Known, output, x, dim=None, keepdim=False, **_: Any) -> Field:
    field = known(x)
    assert field is not None
    # no dim means all; a reduced axis keeps its window with jump 0
    dims = range(x.dim()) if dim is None else _spread(dim, 1)
    return reduce_dims(field, list(dims), keepdim)


def _normalized_over(known: Known, output, x, sizes, *_: Any) -> list[Field]:
    field = known(x)
    assert field is not None
    # statistics over channels see one position only; over axes of the image they see all of it
    over_image = any(factor.axis for dim in field.dims[-len(sizes) :] for factor in dim)
    # the second and third output are mean and reciprocal standard deviation
    rows = reduce_dims(field, range(-len(sizes), 0), keep=True)
    return [replace(field, is_gated=field.is_gated or over_image), rows, rows]


def _group_normalized(known: Known, output, x, *_: Any) -> list[Field | None]:
    field = known(x)
    assert field is not None
    return [replace(field, is_gated=True), None, None]  # its mean and variance are over whole maps


def _product(known: Known, output, a, b) -> Field:
    """Matrix product [..., M, K] @ [..., K, N] with weights on one side; mixes all of dimension K."""
    left, right = known(a), known(b)
    if left is not None and right is not None:
        raise NoReceptiveField  # attention: every position reads every other
    if left is not None:
        left = reduce_dims(left, [-1], keep=True)
        return replace(left, dims=(*left.dims[:-1], (Factor(output.shape[-1]),)))
    assert right is not None
    right = reduce_dims(right, [-2], keep=True)
    return replace(right, dims=(*right.dims[:-2], (Factor(output.shape[-2]),), right.dims[-1]))


def _view(known: Known, output, x, *_: Any) -> Field:
    """Regroup the factors into other dimensions; raises NoReceptiveField if an axis of the image would be split."""
    field = known(x)
    assert field is not None
    factors = [factor for dim in field.dims for factor in dim if factor.size > 1]
    dims: list[Dimension] = []
    for size in output.shape:
        dim: list[Factor] = []
        left = size
        while left > 1:
            # views keep the row-major order, so factors are consumed from the left
            factor = factors.pop(0)
            if left % factor.size == 0:
                dim.append(factor)
                left //= factor.size
            # channels may be split (heads, groups); an axis of the image may not
            elif factor.axis is None and factor.size % left == 0:
                dim.append(Factor(left))
                factors.insert(0, Factor(factor.size // left))
                left = 1
            else:
                raise NoReceptiveField
        dims.append(tuple(dim) or (Factor(1),))
    # an axis of size 1 has no factor any more: its window no longer moves
    kept = {factor.axis for dim in dims for factor in dim}
    windows = {axis: w if axis in kept else w._replace(jump=0) for axis, w in field.windows.items()}
    return replace(field, dims=tuple(dims), windows=windows)


def _permute(known: Known, output, x, order) -> Field:
    field = known(x)
    assert field is not None
    return replace(field, dims=tuple(field.dims[dim] for dim in order))


def _transpose(known: Known, output, x, first: int = 0, second: int = 1) -> Field:
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return _permute(known, output, x, order if x.dim() > 1 else [0])


def _slice(known: Known, output, x, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1):
    field = known(x)
    assert field is not None
    # start may be negative, counted from the end
    dim, start = dim % x.dim(), (start or 0) % max(1, x.shape[dim])
    if output.shape == x.shape:
        return field
    # a slice is a window of one pixel with stride `step` that starts later
    moved = slide_window(field, dim, output.shape[dim], kernel=1, stride=step, padding=0)
    axis = moved.dims[dim][0].axis
    if axis is None:
        return moved
    begin = field.windows[axis].start + start * field.windows[axis].jump
    return replace(moved, windows=moved.windows | {axis: moved.windows[axis]._replace(start=begin)})


def _padding(known: Known, output, x, pad, *_: Any) -> Field:
    field = known(x)
    assert field is not None
    for number in range(len(pad) // 2):  # torch lists the padding from the last dimension backward
        dim = x.dim() - 1 - number
        # padding before the first pixel moves the start; padding after the last changes only the size
        if output.shape[dim] != x.shape[dim] or pad[2 * number]:
            field = slide_window(field, dim, output.shape[dim], kernel=1, stride=1, padding=pad[2 * number])
    return field


def _select(known: Known, output, x, dim: int, index: int) -> Field:
    field = known(x)
    assert field is not None
    factor = merge_factors(field.dims[dim])
    windows = dict(field.windows)
    if factor.axis is not None:
        # one position of the axis is left: its window no longer moves
        window = windows[factor.axis]
        windows[factor.axis] = Window(window.size, 0, window.start + index % factor.size * window.jump)
    return replace(field, dims=_dropped(field.dims, dim), windows=windows)


def _unsqueeze(known: Known, output, x, dim: int) -> Field:
    field = known(x)
    assert field is not None
    dim %= x.dim() + 1
    return replace(field, dims=(*field.dims[:dim], (Factor(1),), *field.dims[dim:]))


def _dropped(dims: tuple[Dimension, ...], dim: int) -> tuple[Dimension, ...]:
    dim %= len(dims)
    return (*dims[:dim], *dims[dim + 1 :])


def _squeeze(known: Known, output, x, dim=None) -> Field:
    dims = range(x.dim()) if dim is None else _spread(dim, 1)
    field = known(x)
    assert field is not None
    return reduce_dims(field, [d for d in dims if x.shape[d] == 1], keep=False)


def _expand(known: Known, output, x, *_: Any) -> Field:
    field = known(x)
    assert field is not None
    return broadcast(field, tuple(output.shape))


def _concatenation(known: Known, output, tensors, dim: int = 0) -> Field:
    fields = [field for tensor in tensors if (field := known(tensor)) is not None]
    dim %= output.dim()
    if any(factor.axis for field in fields for factor in field.dims[dim]):
        raise NoReceptiveField  # maps joined along an axis of the image: its units no longer have one common window
    # a concatenation of channels; like an addition, it reads all branches
    joined = [replace(f, dims=(*f.dims[:dim], (Factor(output.shape[dim]),), *f.dims[dim + 1 :])) for f in fields]
    return pointwise(joined, tuple(output.shape))


def _stacked(known: Known, output, tensors, dim: int = 0) -> Field:
    field = union([field for tensor in tensors if (field := known(tensor)) is not None])
    dim %= output.dim()
    return replace(field, dims=(*field.dims[:dim], (Factor(output.shape[dim]),), *field.dims[dim:]))


# chunks of the channels, such as those of ShuffleNet; kernel 1 keeps their windows
def _pieces(known: Known, output, x, _sizes, dim: int = 0) -> list[Field]:
    return [
        slide_window(_without_axis(known(x), dim), dim % x.dim(), p.shape[dim], kernel=1, stride=1, padding=0)
        for p in output
    ]


def _unbound(known: Known, output, x, dim: int = 0) -> list[Field]:
    return [reduce_dims(_without_axis(known(x), dim), [dim], keep=False)] * len(output)


def _without_axis(field: Field | None, dim: int) -> Field:
    """The field itself; raises NoReceptiveField if dimension `dim` runs along an axis of the image."""
    assert field is not None
    if any(factor.axis for factor in field.dims[dim]):
        raise NoReceptiveField
    return field


def _softmax(known: Known, output, x, dim: int, *_: Any) -> Field:
    return _without_axis(known(x), dim)


# Operations as the dispatcher sees them in eval mode, after composite operations have been decomposed. An operation
# that has no rule and is not elementwise gives NoReceptiveField: no field in the table.
RULES: dict[Any, Callable[..., Any]] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: lambda *args, **kwargs: [_pooling(2)(*args, **kwargs)] * 2,
    aten.avg_pool2d: _pooling(2),
    aten.avg_pool3d: _pooling(3),
    aten._adaptive_avg_pool2d: _adaptive,
    aten.mean: _reduction,
    aten.sum: _reduction,
    aten.amax: _reduction,
    aten.native_layer_norm: _normalized_over,
    aten.native_group_norm: _group_normalized,
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: lambda known, output, bias, a, b, **_: _product(known, output, a, b),
    aten.view: _view,
    aten._unsafe_view: _view,
    aten.reshape: _view,
    aten.permute: _permute,
    aten.transpose: _transpose,
    aten.t: _transpose,
    aten.slice: _slice,
    aten.select: _select,
    aten.constant_pad_nd: _padding,
    aten.unsqueeze: _unsqueeze,
    aten.squeeze: _squeeze,
    aten.expand: _expand,
    aten.cat: _concatenation,
    aten.stack: _stacked,
    aten.split: _pieces,
    aten.split_with_sizes: _pieces,
    aten.unbind: _unbound,
    aten._softmax: _softmax,  # over channels only; over positions (attention) it mixes the image
}

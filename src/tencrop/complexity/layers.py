"""Counts of one layer from the arguments of its operation; count.py defines what is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tencrop.complexity.receptive_field import Field
from tencrop.models.lenet import RadialBasis, SparseConvolution, Subsampling, UnitBiases

aten = torch.ops.aten

# kinds with weights, whose outputs the papers call units or neurons
WITH_UNITS = ("conv", "linear", "subsample", "rbf")
WITHOUT_PARAMETERS = ("product", "max pool", "avg pool")
UNSHOWN = ("norm", "other")  # omitted from the table unless layers=all


@dataclass(frozen=True)
class Layer:
    """One call of a layer, with its counts for one image."""

    name: str  # the module's path
    kind: str  # conv | linear | max pool | avg pool | product | subsample | rbf | norm | other
    output: tuple[int, ...]  # shape without the batch dimension
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    parameters: int = 0
    biases: int = 0  # included in parameters
    mult_adds: int = 0
    connections: int = 0
    bias_connections: int = 0  # included in connections
    field: Field | None = None

    @property
    def units(self) -> int:
        """Number of output values; for layers with weights, the papers' "neurons"."""
        return math.prod(self.output) if self.output else 0

    @property
    def size(self) -> str:
        """Output as height, width, maps: 55×55×96; other outputs in torch's order."""
        # Swin's maps have channels last already: the receptive field tells which dimension is the image's height
        axes = [factor.axis for dim in self.field.dims[1:] for factor in dim] if self.field else []
        maps_first = len(self.output) == 3 and (self.field is None or "h" not in axes or axes.index("h") > 0)
        sizes = (*self.output[1:], self.output[0]) if maps_first else self.output
        return "×".join(str(size) for size in sizes)


def _convolution(output, _fields, x, weight, bias, stride, padding, dilation, transposed, _, groups) -> Layer:
    inputs = weight[0].numel()  # of one unit: kernel height x width x maps per group
    # a transposed convolution applies the kernel once for every input position instead of every output position
    mult_adds = inputs * (x.numel() if transposed else output.numel())
    biases = 0 if bias is None else output.numel()
    return Layer("", "conv", tuple(output.shape[1:]), tuple(weight.shape[2:]), tuple(stride), tuple(padding), groups,
                 mult_adds=mult_adds, connections=mult_adds + biases, bias_connections=biases)  # fmt: skip


def _product(output, _fields, a, b, bias: Any = None) -> Layer:
    mult_adds = output.numel() * a.shape[-1]
    biases = 0 if bias is None else output.numel()
    shape = tuple(output.shape[1:] if output.shape[0] == 1 else output.shape)
    return Layer("", "product" if bias is None else "linear", shape,
                 mult_adds=mult_adds, connections=mult_adds + biases, bias_connections=biases)  # fmt: skip


def _pooling(kind: str) -> Callable[..., Layer | None]:
    def rule(output, _fields, x, kernel, stride=(), padding=(0, 0), *_: Any, **__: Any) -> Layer | None:
        maps = output if isinstance(output, Tensor) else output[0]
        kernels = tuple(kernel) * (2 if len(kernel) == 1 else 1)
        if kernels[-2:] == (1, 1):  # avg_pool3d inside torch's response normalization, which pools over maps only
            return None
        return Layer("", kind, tuple(maps.shape[1:]), kernels, tuple(stride) or kernels, tuple(padding),
                     connections=maps.numel() * math.prod(kernels))  # fmt: skip

    return rule


def _mean(output, fields, x, dims=None, *_: Any, **__: Any) -> Layer | None:
    reads = fields[0]
    if reads is None or dims is None:
        return None
    # a mean is global average pooling if it covers axes of the image; over channels or tokens' features it is none
    kernel = tuple(f.size for d in sorted(d % x.dim() for d in dims) for f in reads.dims[d] if f.axis)
    if not kernel or math.prod(kernel) == 1:
        return None
    shape = tuple(output.shape[1:])
    return Layer("", "avg pool", shape, kernel, (1,) * len(kernel), (0,) * len(kernel), connections=x.numel())


def _adaptive(output, _fields, x, sizes) -> Layer | None:
    if tuple(sizes) == tuple(x.shape[-2:]):
        return None
    # windows differ in size if the sides do not divide; the largest, rounded up, is shown
    kernel = tuple(-(-x.shape[dim] // output.shape[dim]) for dim in (-2, -1))
    connections = output.numel() * math.prod(kernel)
    return Layer("", "avg pool", tuple(output.shape[1:]), kernel, kernel, (0, 0), connections=connections)


# keyed by overload packet: aten.mm stands for mm.default and mm.out
COUNTED: dict[Any, Callable[..., Layer | None]] = {
    aten.convolution: _convolution,
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: lambda output, fields, bias, a, b, **_: _product(output, fields, a, b, bias),
    aten.baddbmm: lambda output, fields, bias, a, b, **_: _product(output, fields, a, b),
    aten.max_pool2d_with_indices: _pooling("max pool"),
    aten.avg_pool2d: _pooling("avg pool"),
    aten.avg_pool3d: _pooling("avg pool"),
    aten._adaptive_avg_pool2d: _adaptive,
    aten.mean: _mean,
}


def _sparse_convolution(module: SparseConvolution, _inputs: Tensor, layer: Layer) -> Layer:
    """Count only existing kernels; the operation itself runs with a dense weight that contains zeros."""
    mult_adds = module.weight.numel() * math.prod(layer.output[1:])
    return replace(layer, mult_adds=mult_adds, connections=mult_adds + layer.bias_connections)


def _subsampling(_module: Subsampling, _inputs: Tensor, layer: Layer) -> Layer:
    """Four inputs, counted by the pooling inside, and a bias for each unit."""
    return replace(layer, kind="subsample", connections=layer.connections + layer.units, bias_connections=layer.units)


def _unit_biases(_module: UnitBiases, _inputs: Tensor, layer: Layer) -> Layer:
    return replace(layer, kind="other", connections=layer.units, bias_connections=layer.units)


def _radial_basis(module: RadialBasis, _inputs: Tensor, layer: Layer) -> Layer:
    """One squared difference per input of a unit."""
    return replace(layer, kind="rbf", mult_adds=module.codes.numel(), connections=module.codes.numel())


# layers whose counts cannot be derived from the shapes of their operations
LENET_LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Layer], Layer]] = {
    SparseConvolution: _sparse_convolution,
    Subsampling: _subsampling,
    UnitBiases: _unit_biases,
    RadialBasis: _radial_basis,
}

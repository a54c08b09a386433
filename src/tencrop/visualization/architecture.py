"""Architecture overview of any network: its stages of one output size, and the blocks within them.

Derived only from the module tree and the shapes of one forward pass, so that it works for networks of any library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from tencrop.models.alexnet import LocalResponseNorm
from tencrop.visualization.drawing import BLUE, GREEN, INK, ORANGE, SOFT, bare, styled
from tencrop.visualization.trace import Call, Shape, has_weights, trace

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Extent(NamedTuple):
    """Spatial layout of a stage's output: maps of height x width, a sequence of tokens (height 1), or one vector."""

    kind: str  # maps | tokens | vector
    height: int
    width: int


class Stage(NamedTuple):
    """Consecutive layers whose outputs have the same extent."""

    extent: Extent
    channels: int  # of its last output
    lines: list[str]  # its layers and blocks, such as "3 × Bottleneck, 256"
    num_parameters: int

    @property
    def size(self) -> str:
        """Output size as papers print it: 56 × 56 × 256."""
        kind, height, width = self.extent
        sides = {"maps": f"{height} × {width} × ", "tokens": f"{width} × ", "vector": ""}[kind]
        return f"{sides}{self.channels}"


def stages(network: nn.Module, *, image_size: int) -> list[Stage]:
    """Split a network with inputs [N, 3, image_size, image_size] into stages.

    Normalization, activation and dropout layers are not listed, but their parameters count.
    """
    calls = trace(network, torch.zeros(1, 3, image_size, image_size))
    shown = set(_unit_names("", network))
    units = [call for call in calls if call.name in shown and call.output]
    found: list[Stage] = []
    # groupby merges neighbors only: a later stage with the same size stays a stage of its own
    counted: set[str] = set()
    for extent, members in groupby(units, key=lambda call: _extent(call.output)[0]):
        group = list(members)
        texts = [text for call in group if (text := _description(call)) is not None]
        new = {call.name: call.module for call in group if call.name not in counted}  # a layer may be called twice
        counted |= set(new)
        num_parameters = sum(parameter.numel() for module in new.values() for parameter in module.parameters())
        # equal neighbors become "3 × Bottleneck, 256"
        runs = [(text, len(list(same))) for text, same in groupby(texts)]
        lines = [f"{number} × {text}" if number > 1 else text for text, number in runs]
        if lines:  # a group of activations or dropout only is no stage
            found.append(Stage(extent, _extent(group[-1].output)[1], lines, num_parameters))
    return found


def architecture_figure(network: nn.Module, *, image_size: int, title: str) -> Figure:
    """Draw the stages side by side as slabs: the height shows the resolution of the maps, the width their number."""
    found = stages(network, image_size=image_size)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    # inches; 0.085 per character fits DejaVu Sans at 8.5 points without measuring text, which needs a renderer
    columns = [max(len(line) for line in (stage.size, *stage.lines)) * 0.085 + 0.25 for stage in found]
    columns = [max(column, 0.3 + _thickness(stage)) for column, stage in zip(columns, found, strict=True)]
    num_lines = max(len(stage.lines) for stage in found)
    # tallest: inches of the slab with the largest side
    tallest, largest = 1.6, max(_side(stage) for stage in found)
    width, height = sum(columns) + 0.4, tallest + 1.35 + 0.19 * num_lines
    with styled():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        bare(axes)
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.text(0.2, height - 0.25, title, weight="bold", size=11, va="center")
        about = f"input {image_size} × {image_size} × 3 · {num_parameters:,} parameters"
        axes.text(0.2, height - 0.5, about, color=SOFT, va="center")
        # slabs are centered on one line; the text starts below the tallest
        floor, left = 0.19 * num_lines + 0.5, 0.2
        for stage, column in zip(found, columns, strict=True):
            slab = _height(stage, largest) * tallest
            color = {"maps": BLUE, "tokens": GREEN, "vector": ORANGE}[stage.extent.kind]
            place = (left, floor + (tallest - slab) / 2)
            box = FancyBboxPatch(place, _thickness(stage), slab, boxstyle="round,pad=0,rounding_size=0.03", ec="none")
            axes.add_patch(box)
            box.set(facecolor=color, alpha=0.85)
            axes.text(left, floor - 0.17, stage.size, weight="bold", va="center")
            axes.text(left, floor - 0.35, _short(stage.num_parameters), color=SOFT, va="center", size=8)
            for number, line in enumerate(stage.lines):
                axes.text(left, floor - 0.56 - 0.19 * number, line, color=INK, va="center", size=8.5)
            left += column
    return figure


def _unit_names(prefix: str, module: nn.Module) -> Iterator[str]:
    """Names of the modules that are shown as one unit: neither containers nor stages of blocks."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, CONTAINERS) or _holds_blocks(child):
            yield from _unit_names(path, child)
        else:
            yield path


def _holds_blocks(module: nn.Module) -> bool:
    """Whether the module is a stage: it holds a list of blocks of one class, or consists of such blocks."""
    lists = [child for child in module.children() if isinstance(child, CONTAINERS) and len(child)]
    return _are_blocks(list(module.children())) or any(_are_blocks(list(child.children())) for child in lists)


def _are_blocks(modules: list[nn.Module]) -> bool:
    kinds = {type(module) for module in modules}
    # More than one weight layer each: a list of single convolutions is a sequence of layers, not of blocks.
    is_one_kind = len(kinds) == 1 and not isinstance(modules[0], CONTAINERS)
    return is_one_kind and all(len(_weighty(module)) > 1 for module in modules)


def _weighty(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers of the module and its submodules."""
    return [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def _description(call: Call) -> str | None:
    """Describe a unit, such as "conv 3 × 3, 64"; None for normalization, activation, dropout and reshaping."""
    weighty, (extent, channels) = _weighty(call.module), _extent(call.output)
    if len(weighty) == 1:  # a convolution with its BatchNorm and ReLU in one module counts as the convolution
        layer = weighty[0]
        return f"linear, {layer.out_features}" if isinstance(layer, nn.Linear) else _convolution(layer)
    # several weight layers (a block), or parameters of another kind, such as an embedding
    if weighty or (has_weights(call.module) and not isinstance(call.module, NORMS)):
        return f"{type(call.module).__name__}, {channels}"
    for pool in call.module.modules():
        if isinstance(pool, (nn.MaxPool2d, nn.AvgPool2d)):
            kind = "max" if isinstance(pool, nn.MaxPool2d) else "average"
            stride = _one(pool.stride)
            return f"{kind} pool {_by(pool.kernel_size)}" + (f" / {stride}" if stride != "1" else "")
    if isinstance(call.module, LocalResponseNorm):
        return "response norm"
    # global pooling comes in many classes, or as a mean in a module of timm's: recognized by its shapes
    is_of_maps = bool(call.input) and _extent(call.input)[0].kind == "maps"
    return "average pool" if is_of_maps and extent.kind == "vector" and not _is_flattening(call) else None


def _is_flattening(call: Call) -> bool:
    return math.prod(call.input) == math.prod(call.output)


def _convolution(layer: nn.Conv2d) -> str:
    stride = _one(layer.stride)
    text = f"conv {_by(layer.kernel_size)}, {layer.out_channels}" + (f" / {stride}" if stride != "1" else "")
    if layer.groups == 1:
        return text
    # one group per input map
    return f"{text}, depthwise" if layer.groups == layer.in_channels else f"{text}, {layer.groups} groups"


def _extent(shape: Shape) -> tuple[Extent, int]:
    """Extent and number of channels of an output; recognizes maps with channels last (Swin) if they are square."""
    # 1 x 1 maps are a vector, so that global pooling starts a new stage
    if len(shape) == 4 and (shape[2] == shape[3] or shape[1] != shape[2]):
        return (Extent("maps", *shape[2:]) if shape[2:] != (1, 1) else Extent("vector", 1, 1)), shape[1]
    if len(shape) == 4:
        return Extent("maps", *shape[1:3]), shape[3]
    if len(shape) == 3:
        return Extent("tokens", 1, shape[1]), shape[2]
    return Extent("vector", 1, 1), shape[-1]


def _side(stage: Stage) -> float:
    """Side of the maps, or of a square of as many tokens."""
    return math.sqrt(stage.extent.height * stage.extent.width)


def _height(stage: Stage, largest: float) -> float:
    """Fraction of the tallest slab; the square root keeps 7 x 7 visible beside 224 x 224."""
    return max(0.07, math.sqrt(_side(stage) / largest))


def _thickness(stage: Stage) -> float:
    """Width of the slab in inches, logarithmic in the number of channels."""
    return 0.1 + 0.08 * math.log2(1 + stage.channels)


def _short(number: int) -> str:
    """Number of parameters in short form: 1.22 M, 34.9 K, 156."""
    if number >= 1e5:  # 0.123 M rather than 123 K: one unit for most layers of a network
        return f"{number / 1e6:.3g} M"
    return f"{number / 1e3:.3g} K" if number >= 1000 else str(number) if number else "–"


def _one(value: int | tuple[int, ...]) -> str:
    sides = {value} if isinstance(value, int) else set(value)
    return str(sides.pop()) if len(sides) == 1 else _by(value)


def _by(value: int | tuple[int, ...]) -> str:
    return f"{value} × {value}" if isinstance(value, int) else " × ".join(str(side) for side in value)

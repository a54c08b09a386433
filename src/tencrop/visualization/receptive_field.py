"""Effective receptive field: how much each pixel influences the center of a feature map (Luo et al. 2016)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from tencrop.complexity.count import count
from tencrop.visualization.drawing import HEAT, SOFT, bare, styled, titled
from tencrop.visualization.trace import captured, last_maps, trace

# Threshold relative to the largest gradient: the paper takes what lies outside two standard deviations of a Gaussian
STRONG = 1 - 0.9545


class Box(NamedTuple):
    """Rectangle of pixels, half-open: rows top to bottom - 1, columns left to right - 1."""

    top: int
    left: int
    bottom: int
    right: int


class Field(NamedTuple):
    """Influence of each pixel on the center of a layer's maps."""

    strength: Tensor  # float64 [H, W], absolute gradient divided by its maximum
    layer: str

    @property
    def side(self) -> float:
        """Side in pixels of a square with the area of the strong gradients."""
        return math.sqrt(float((self.strength > STRONG).sum()))


def effective_field(network: nn.Module, images: Tensor, *, layer: str | None = None) -> Field:
    """Compute the field of the center of the last maps, or of `layer` at its last call, in eval mode.

    images: float [B, 3, H, W]. Takes the gradient of the center's sum over channels, sums its absolute values over
    colors and averages over images. Raises NotApplicable for a network without maps.
    """
    network = network.eval()
    # a trace costs one forward pass of one image
    call = last_maps(trace(network, images[:1])) if layer is None else None
    name = layer if call is None else call.name
    assert name is not None
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    for image in images.split(1):  # one by one: the graph of a whole batch would be kept for the backward pass
        image = image.detach().requires_grad_()
        with captured(network.get_submodule(name), lambda inputs, output: output) as found:
            network(image)
        height, width = found[-1].shape[2:]
        # for an even side, the lower right of the four central units
        center = found[-1][:, :, height // 2, width // 2].sum()
        (gradient,) = torch.autograd.grad(center, image)
        # absolute values before the average; with signs, the images would cancel each other
        total += gradient.double().abs().sum((0, 1))
    # a constant output has no gradient at all: leave zeros instead of dividing by 0
    return Field(total / total.max() if total.max() > 0 else total, name)


def theoretical_side(network: nn.Module, layer: str, *, image_size: int) -> int | None:
    """Theoretical receptive field of a unit of the layer, in pixels along an axis and including padding, or None.

    For a block this is the maximum over its layers, that of the longest path. complexity.count names repeated calls of
    a layer "NAME(2)"; all calls are considered. None if no layer has a window: attention mixes all positions.
    """
    # "NAME(2)" -> "NAME"
    layers = [(re.sub(r"\(\d+\)$", "", one.name), one) for one in count(network, image_size).layers]
    within = [one for name, one in layers if f"{name}.".startswith(f"{layer}.")]
    sizes = [max(window.size for window in one.field.windows.values()) for one in within if one.field is not None]
    return max(sizes, default=None)


def seen_box(field: Field) -> Box | None:
    """Smallest box that holds every pixel with a gradient; None if there is none."""
    rows, columns = (field.strength > 0).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return Box(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)


def field_figure(fields: Sequence[tuple[str, Field]], *, title: str, theoretical: int | None = None) -> Figure:
    """Draw fields side by side, each on its own scale, with the box of all pixels that have any influence."""
    with styled():
        figure = Figure(figsize=(2.9 * len(fields) + 0.7, 3.6))
        titled(figure, title)
        grid = figure.subplots(1, len(fields), squeeze=False, gridspec_kw={"wspace": 0.12})[0]
        for axes, (name, field) in zip(grid, fields, strict=True):
            # The field falls off like a Gaussian; the square root keeps its tails visible.
            shown = axes.imshow(field.strength.sqrt().numpy(), cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
            bare(axes)
            axes.set_title(name)
            if box := seen_box(field):
                # imshow centers pixels on integers, so their edges are at halves
                corner = (box.left - 0.5, box.top - 0.5)
                size = (box.right - box.left, box.bottom - box.top)
                axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#ffffff", linewidth=1.2, linestyle="--"))
            axes.set_xlabel(_sentence(field, theoretical))
        bar = figure.colorbar(shown, ax=list(grid), fraction=0.035, pad=0.02)
        bar.set_label("square root of the relative gradient", color=SOFT)
        bar.outline.set_visible(False)
    return figure


def _sentence(field: Field, theoretical: int | None) -> str:
    """Two lines below the axes: theoretical and strong side, and the extent of any influence."""
    height, width = field.strength.shape
    whole = f"theoretical {theoretical} px, " if theoretical else ""
    box = seen_box(field)
    extent = f"extent {box.bottom - box.top} × {box.right - box.left}" if box else "extent 0"
    return f"{whole}strong {field.side:.0f} px\n{extent} of {height} × {width}"

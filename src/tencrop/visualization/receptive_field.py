"""What the last feature maps see of the image: the effective receptive field (Luo, Li, Urtasun and Zemel 2016).

Called by figures.py.
"""

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

STRONG = 1 - 0.9545  # of the largest gradient: two standard deviations of a Gaussian, as the paper counts


class Box(NamedTuple):
    """Pixels of the image: the first row and column, and the first ones behind."""

    top: int
    left: int
    bottom: int
    right: int


class Field(NamedTuple):
    """How much each pixel moves the center of the last maps."""

    strength: Tensor  # float64 [H, W], at most 1
    layer: str  # whose output's center it is

    @property
    def side(self) -> float:
        """Pixels: the side of a square as large as the area of strong gradients."""
        return math.sqrt(float((self.strength > STRONG).sum()))


def effective_field(network: nn.Module, images: Tensor, *, layer: str | None = None) -> Field:
    """The field of the center unit of the last maps (or of `layer`, at its last call), in eval mode.

    Gradients of the center's sum over channels for float images [B, 3, H, W], their absolute values summed over
    colors and averaged over images. Raises HasNone for a network without maps.
    """
    network = network.eval()
    call = last_maps(trace(network, images[:1])) if layer is None else None
    name = layer if call is None else call.name
    assert name is not None
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    for image in images.split(1):
        image = image.detach().requires_grad_()
        with captured(network.get_submodule(name), lambda inputs, output: output) as found:
            network(image)
        height, width = found[-1].shape[2:]
        center = found[-1][:, :, height // 2, width // 2].sum()
        (gradient,) = torch.autograd.grad(center, image)
        total += gradient.double().abs().sum((0, 1))
    return Field(total / total.max() if total.max() > 0 else total, name)


def theoretical_side(network: nn.Module, layer: str, *, image_size: int) -> int | None:
    """Pixels of an axis that a unit of the layer can see, padding included (complexity); None where it has no window.

    Of a block it is the largest of its layers, which lies on its longest path; of a layer called again, "NAME(2)", its
    last call's.
    """
    layers = [(re.sub(r"\(\d+\)$", "", one.name), one) for one in count(network, image_size).layers]
    within = [one for name, one in layers if f"{name}.".startswith(f"{layer}.")]
    sizes = [max(window.size for window in one.field.windows.values()) for one in within if one.field is not None]
    return max(sizes, default=None)


def seen_box(field: Field) -> Box | None:
    """The smallest box with every pixel that has any gradient; None where none has."""
    rows, columns = (field.strength > 0).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return Box(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)


def field_figure(fields: Sequence[tuple[str, Field]], *, title: str, theoretical: int | None = None) -> Figure:
    """Fields side by side, each on its own scale, with the box of all pixels that have any influence."""
    with styled():
        figure = Figure(figsize=(2.9 * len(fields) + 0.7, 3.6))
        titled(figure, title)
        grid = figure.subplots(1, len(fields), squeeze=False, gridspec_kw={"wspace": 0.12})[0]
        for axes, (name, field) in zip(grid, fields, strict=True):
            shown = axes.imshow(field.strength.sqrt().numpy(), cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
            bare(axes)
            axes.set_title(name)
            if box := seen_box(field):
                corner = (box.left - 0.5, box.top - 0.5)
                size = (box.right - box.left, box.bottom - box.top)
                axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#ffffff", linewidth=1.2, linestyle="--"))
            axes.set_xlabel(_sentence(field, theoretical))
        bar = figure.colorbar(shown, ax=list(grid), fraction=0.035, pad=0.02)
        bar.set_label("square root of the gradient’s share", color=SOFT)
        bar.outline.set_visible(False)
    return figure


def _sentence(field: Field, theoretical: int | None) -> str:
    height, width = field.strength.shape
    whole = f"theoretical {theoretical} px, " if theoretical else ""
    box = seen_box(field)
    reach = f"reaches {box.bottom - box.top} × {box.right - box.left}" if box else "sees nothing"
    return f"{whole}strong {field.side:.0f} px\n{reach} of {height} × {width}"

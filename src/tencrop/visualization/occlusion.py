"""Occlusion sensitivity: the probability of a class while a gray square covers each part of the image.

After Zeiler and Fergus 2013, figure 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from tencrop.visualization.drawing import HEAT, SOFT, bare, shortened, styled, titled
from tencrop.visualization.trace import run_frozen
from tencrop.visualization.trained_model import BATCH_SIZE, Images

SHARE = 0.25  # side of the square relative to that of the image
POSITIONS = 14  # of the square along each axis: 196 occluded copies per image


class Occlusion(NamedTuple):
    """Probabilities of one label under occlusion."""

    probabilities: Tensor  # float32 [P, P], by position of the square's center
    whole: float  # without occlusion
    square: int  # side in pixels


def occlusion(
    network: nn.Module, image: Tensor, label: int, *, square: int | None = None, positions: int = POSITIONS
) -> Occlusion:
    """Probabilities of `label` for a normalized image, float [3, H, W], with a square set to 0, the mean color.

    The square's center takes `positions` x `positions` evenly spaced positions from edge to edge; the square is cut off
    at the image's border.
    """
    height, width = image.shape[1:]
    square = square or max(1, round(SHARE * min(height, width)))
    covered = []
    for row in range(positions):
        for column in range(positions):
            top = round(row * (height - 1) / max(1, positions - 1)) - square // 2
            left = round(column * (width - 1) / max(1, positions - 1)) - square // 2
            copy = image.clone()
            # max(0, ...): a negative start would count from the other end
            copy[:, max(0, top) : top + square, max(0, left) : left + square] = 0
            covered.append(copy)
    # the whole image comes first, so that one pass gives both
    batches = torch.stack([image, *covered]).split(BATCH_SIZE)
    found = torch.cat([run_frozen(network, batch).float().softmax(1)[:, label] for batch in batches])
    return Occlusion(found[1:].view(positions, positions), float(found[0]), square)


def occlusion_figure(images: Images, found: Sequence[Occlusion], *, names: Sequence[str], title: str) -> Figure:
    """Draw each image above its map; dark where the square lowers the probability of the class."""
    with styled():
        figure = Figure(figsize=(1.9 * len(found) + 0.7, 4.4))
        titled(figure, title)
        above, below = figure.subplots(2, len(found), squeeze=False, gridspec_kw={"wspace": 0.1, "hspace": 0.12})
        for column, one in enumerate(found):
            pixels = images.pixels[column]
            above[column].imshow(pixels.numpy(), interpolation="nearest")
            above[column].set_title(shortened(names[int(images.labels[column])], 18))
            extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
            shown = below[column].imshow(
                one.probabilities.numpy(), cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear", extent=extent
            )
            least, most = float(one.probabilities.min()), float(one.probabilities.max())
            below[column].set_xlabel(f"whole {one.whole:.2f}\noccluded {least:.2f} – {most:.2f}")
            bare(above[column])
            bare(below[column])
        bar = figure.colorbar(shown, ax=[*above, *below], fraction=0.025, pad=0.02)
        bar.set_label(f"probability with the {found[0].square} px square at this position", color=SOFT)
        bar.outline.set_visible(False)
    return figure

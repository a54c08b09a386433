"""Nearest training images of test images in the last hidden layer (Krizhevsky et al. 2012, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from tencrop.visualization.drawing import BLUE, ORANGE, RULE, SOFT, framed, shortened, styled, titled
from tencrop.visualization.trace import captured, classifying_layer, run_frozen, trace
from tencrop.visualization.trained_model import BATCH_SIZE, Images

NUM_QUERIES, NUM_NEAREST = 5, 6  # as in the paper's figure


class Nearest(NamedTuple):
    """For each of Q queries, the positions and distances of its n nearest candidates, nearest first."""

    positions: Tensor  # int64 [Q, n]
    distances: Tensor  # float32 [Q, n], Euclidean


def hidden_features(network: nn.Module, inputs: Tensor) -> Tensor:
    """Input of the classifying layer, float32 [B, F], for images [B, 3, H, W]; maps are averaged over positions."""
    # found by a trace, since names differ between networks: fc, head, classifier.6, output
    name = classifying_layer(trace(network, inputs[:1])).name
    parts = []
    for batch in inputs.split(BATCH_SIZE):
        with captured(network.get_submodule(name), lambda inputs, output: inputs[0]) as found:
            run_frozen(network, batch)
        features = found[-1].float()
        parts.append(features.mean((2, 3)) if features.ndim == 4 else features.flatten(1))
    return torch.cat(parts)


def nearest(queries: Tensor, candidates: Tensor, *, num: int = NUM_NEAREST) -> Nearest:
    """Find the `num` candidates [M, F] nearest to each query [Q, F] by Euclidean distance; ties go to the first."""
    # cdist's default for large inputs computes |a|^2 - 2ab + |b|^2, which gives equal images a distance above 0
    distances = torch.cdist(queries.double(), candidates.double(), compute_mode="donot_use_mm_for_euclid_dist")
    # sorting all candidates is slower than topk, whose choice among ties is not defined
    order = distances.argsort(dim=1, stable=True)[:, :num]
    return Nearest(order, distances.gather(1, order).float())


def retrieval_figure(
    queries: Images, candidates: Images, found: Nearest, *, names: Sequence[str], title: str
) -> Figure:
    """Draw a row per test image: the image, then its neighbors in a blue frame (same class) or an orange one."""
    num_rows, num_columns = found.positions.shape
    with styled():
        figure = Figure(figsize=(1.25 * (num_columns + 1) + 0.3, 1.5 * num_rows + 0.6))
        titled(figure, title)
        grid = figure.subplots(num_rows, num_columns + 1, squeeze=False, gridspec_kw={"wspace": 0.12, "hspace": 0.3})
        for row in range(num_rows):
            label = int(queries.labels[row])
            _show(grid[row][0], queries.pixels[row], RULE)
            grid[row][0].set_title(shortened(names[label], 14), size=8.5)
            for column, position in enumerate(found.positions[row].tolist(), start=1):
                other = int(candidates.labels[position])
                _show(grid[row][column], candidates.pixels[position], BLUE if other == label else ORANGE)
                distance = f"{found.distances[row, column - 1]:.3g}"
                mark = "" if other == label else f"{shortened(names[other], 11)}: "
                grid[row][column].set_title(f"{mark}{distance}", size=7.5, color=SOFT, weight="normal")
    return figure


def _show(axes, pixels: Tensor, color: str) -> None:
    axes.imshow(pixels.numpy(), interpolation="nearest")
    framed(axes, color)

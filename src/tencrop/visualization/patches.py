"""What excites a unit: the images whose maps it answers most, cut to what the unit sees of them.

After Zeiler and Fergus 2013, figure 2, whose patches stand beside projections by a deconvolutional network; such a
projection is a gradient whose way back through every ReLU is rectified as well (their section 2.1). Called by
figures.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from tencrop.visualization.drawing import SOFT, bare, styled, titled
from tencrop.visualization.receptive_field import Box, Field, seen_box
from tencrop.visualization.trace import captured, run_frozen
from tencrop.visualization.trained_model import AT_ONCE

NUM_UNITS, NUM_PATCHES = 6, 5


class Excited(NamedTuple):
    """An image and the place in a unit's map where its answer is largest."""

    image: int  # position among the images
    row: int
    column: int
    answer: float


def most_excited(network: nn.Module, inputs: Tensor, layer: str, *, num: int) -> list[list[Excited]]:
    """For each unit (channel of the layer's maps) the `num` images that excite it most, at most one place of each."""
    answers, places = [], []
    for batch in inputs.split(AT_ONCE):
        with captured(network.get_submodule(layer), lambda inputs, output: output) as found:
            run_frozen(network, batch)
        maps = found[-1]
        largest, place = maps.flatten(2).max(2)
        width = maps.shape[3]
        answers.append(largest)
        places.append(place)
    answer, place = torch.cat(answers), torch.cat(places)
    result = []
    for unit in range(answer.shape[1]):
        order = answer[:, unit].argsort(descending=True, stable=True)[:num].tolist()
        result.append([Excited(i, *divmod(int(place[i, unit]), width), answer=float(answer[i, unit])) for i in order])
    return result


def projection(network: nn.Module, image: Tensor, layer: str, unit: int, excited: Excited) -> Tensor:
    """The pixels that excite the unit at its place, float [3, H, W], by the way of a deconvolutional network.

    The unit's answer goes back through the convolutions transposed, through the switches of maximum pooling, and is
    rectified at every nn.ReLU. A network with other nonlinearities gives the plain gradient times the answer.
    """
    inputs = image[None].detach().clone().requires_grad_()
    with _rectifying(network.eval()), captured(network.get_submodule(layer), lambda _, output: output) as found:
        network(inputs)
        answer = found[-1][0, unit, excited.row, excited.column]
        (gradient,) = torch.autograd.grad(0.5 * answer.square(), inputs)
    return gradient[0]


def patch_box(projected: Tensor) -> Box:
    """The box of all pixels with any gradient; the whole image where there is none."""
    height, width = projected.shape[1:]
    return seen_box(Field(projected.double().abs().sum(0), "")) or Box(0, 0, height, width)


def patches_figure(rows: Sequence[tuple[int, Sequence[tuple[Tensor, Tensor]]]], *, title: str) -> Figure:
    """A row for each unit: pairs of a patch, uint8 [h, w, 3], and the projection of what excites, float [3, h, w]."""
    num_columns = 2 * max(len(pairs) for _, pairs in rows)
    with styled():
        figure = Figure(figsize=(0.85 * num_columns + 0.9, 0.95 * len(rows) + 0.6))
        titled(figure, title)
        grid = figure.subplots(len(rows), num_columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.08})
        for (unit, pairs), axes in zip(rows, grid, strict=True):
            for one in axes:
                bare(one)
            axes[0].set_ylabel(f"{unit}", rotation=0, ha="right", va="center", color=SOFT)
            for number, (pixels, projected) in enumerate(pairs):
                axes[2 * number].imshow(pixels.numpy(), interpolation="nearest")
                axes[2 * number + 1].imshow(_gray_centered(projected).numpy(), interpolation="nearest")
    return figure


def _gray_centered(projected: Tensor) -> Tensor:
    """Square roots as colors [h, w, 3] in [0, 1], 0 as middle gray; all gray where only the first channel is read."""
    if not projected[1:].any():
        projected = projected[:1].expand(3, -1, -1)
    largest = projected.abs().max().clamp(min=1e-30)
    return (0.5 + 0.5 * projected.sign() * (projected.abs() / largest).sqrt()).permute(1, 2, 0)


@contextmanager
def _rectifying(network: nn.Module) -> Iterator[None]:
    """Gradients that pass a ReLU of the network backwards lose what is negative of them."""
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    were_inplace = [relu.inplace for relu in relus]
    handles = []
    try:
        for relu in relus:
            relu.inplace = False
            handles.append(relu.register_forward_hook(_rectified_backwards))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for relu, was_inplace in zip(relus, were_inplace, strict=True):
            relu.inplace = was_inplace


def _rectified_backwards(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return Deconvolved.apply(inputs[0])


class Deconvolved(torch.autograd.Function):
    """A ReLU whose backward way is a ReLU too, whatever came forwards."""

    @staticmethod
    def forward(ctx, maps: Tensor) -> Tensor:
        return maps.relu()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.relu()

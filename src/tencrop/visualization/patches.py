"""Image patches that activate a unit most, with deconvnet projections (Zeiler and Fergus 2013, figure 2).

A deconvnet projection is a gradient that is rectified at every ReLU on the way back.
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
from tencrop.visualization.trained_model import BATCH_SIZE

NUM_UNITS, NUM_PATCHES = 6, 5  # rows and pairs per row


class Activation(NamedTuple):
    """The largest value in a unit's map of one image, and its position in the map."""

    image: int  # position among the images
    row: int
    column: int
    value: float


def top_activations(network: nn.Module, inputs: Tensor, layer: str, *, num: int) -> list[list[Activation]]:
    """For each unit (channel of the layer's maps), the `num` images that activate it most, one position per image."""
    values, positions = [], []
    for batch in inputs.split(BATCH_SIZE):
        with captured(network.get_submodule(layer), lambda inputs, output: output) as found:
            run_frozen(network, batch)
        maps = found[-1]  # the last call, if the layer is called several times
        # Only the maxima are kept: the maps of 500 images in an early layer would take gigabytes.
        largest, position = maps.flatten(2).max(2)
        width = maps.shape[3]
        values.append(largest)
        positions.append(position)
    value, position = torch.cat(values), torch.cat(positions)
    result = []
    for unit in range(value.shape[1]):
        # stable: equal values keep the order of the images, so that the figure is reproducible
        order = value[:, unit].argsort(descending=True, stable=True)[:num].tolist()
        result.append(
            [Activation(i, *divmod(int(position[i, unit]), width), value=float(value[i, unit])) for i in order]
        )
    return result


def projection(network: nn.Module, image: Tensor, layer: str, unit: int, activation: Activation) -> Tensor:
    """Deconvnet projection of one activation to pixels, float [3, H, W].

    The activation passes back through transposed convolutions and the switches of max pooling, and is rectified at
    every nn.ReLU. With other nonlinearities the result is the plain gradient times the activation.
    """
    inputs = image[None].detach().clone().requires_grad_()
    with _rectifying(network.eval()), captured(network.get_submodule(layer), lambda _, output: output) as found:
        network(inputs)
        value = found[-1][0, unit, activation.row, activation.column]
        # the gradient of value^2 / 2 starts from `value` itself, as the deconvnet does, not from 1
        (gradient,) = torch.autograd.grad(0.5 * value.square(), inputs)
    return gradient[0]


def patch_box(projected: Tensor) -> Box:
    """Smallest box that holds every pixel with a gradient; the whole image if there is none."""
    height, width = projected.shape[1:]
    return seen_box(Field(projected.double().abs().sum(0), "")) or Box(0, 0, height, width)


def patches_figure(rows: Sequence[tuple[int, Sequence[tuple[Tensor, Tensor]]]], *, title: str) -> Figure:
    """One row per unit: pairs of a patch, uint8 [h, w, 3], and its projection, float [3, h, w]."""
    # each patch takes two columns: pixels and projection
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
    """Signed square roots scaled to colors [h, w, 3] in [0, 1], with 0 as middle gray.

    A network that reads only the first channel (LeNet) gives a gray image. The root makes weak pixels visible.
    """
    if not projected[1:].any():
        projected = projected[:1].expand(3, -1, -1)
    # clamp: a projection of zeros becomes gray, not NaN
    largest = projected.abs().max().clamp(min=1e-30)
    return (0.5 + 0.5 * projected.sign() * (projected.abs() / largest).sqrt()).permute(1, 2, 0)


@contextmanager
def _rectifying(network: nn.Module) -> Iterator[None]:
    """Context in which gradients are rectified at every ReLU of the network."""
    # nn.ReLU modules only: F.relu inside a forward method cannot be hooked
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    were_inplace = [relu.inplace for relu in relus]
    handles = []
    try:
        for relu in relus:
            relu.inplace = False  # in place, the ReLU's own mask would stay in the graph
            handles.append(relu.register_forward_hook(_deconvolved))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for relu, was_inplace in zip(relus, were_inplace, strict=True):
            relu.inplace = was_inplace


def _deconvolved(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # replaces the output: a backward hook could not drop ReLU's own mask, which a deconvnet does not apply
    return Deconvolved.apply(inputs[0])


class Deconvolved(torch.autograd.Function):
    """ReLU whose backward pass is a ReLU of the gradient, independent of the forward pass."""

    @staticmethod
    def forward(ctx, maps: Tensor) -> Tensor:
        return maps.relu()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.relu()

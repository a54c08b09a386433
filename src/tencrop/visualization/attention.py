"""Attention maps of vision transformers: every layer and head, and the rollout over layers.

Works for timm's networks whose blocks use timm's Attention class, such as ViT and DeiT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from matplotlib.figure import Figure
from timm.layers.attention import Attention
from torch import Tensor, nn

from tencrop.visualization.drawing import HEAT, bare, shortened, styled, titled
from tencrop.visualization.trace import NotApplicable, captured, run_frozen
from tencrop.visualization.trained_model import Images

MAX_HEADS = 6  # shown in the figure


def attention_maps(network: nn.Module, images: Tensor, *, name: str = "the network") -> Tensor:
    """Attention [L, B, heads, N, N] of all L layers for images [B, 3, H, W]; every row sums to 1.

    Row i has the weights with which token i attends to each token. Prefix tokens (class, distillation) come first.
    Fused attention, which never materializes the weights, is disabled for the pass. Raises NotApplicable for other
    networks.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, Attention)]
    if not layers:
        raise NotApplicable(f"figure=attention: {name} has no layer of timm's Attention class; choose a ViT or DeiT")
    with _unfused(layers), ExitStack() as stack:
        # attn_drop's output is the softmax, since dropout is an identity in eval mode; no other module sees it
        found = [stack.enter_context(captured(layer.attn_drop, lambda _, output: output)) for layer in layers]
        run_frozen(network, images)
    # float(): a network in half precision would lose more with every product of the rollout
    return torch.stack([maps[-1] for maps in found]).float()


def rollout(attention: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): attention [L, B, heads, N, N] -> [B, N, N].

    Multiplies, over all layers, the mean over heads averaged with the identity, which stands for the residual
    connection. Row i has the share of each input token in output token i.
    """
    identity = torch.eye(attention.shape[-1], dtype=attention.dtype)
    total = identity.expand(attention.shape[1], -1, -1)
    for layer in attention.mean(2):
        # from the left: the later layer mixes what the earlier ones have mixed
        total = (0.5 * layer + 0.5 * identity) @ total
    return total


def patch_map(rows: Tensor, *, num_prefix: int) -> Tensor:
    """Reshape attention rows [..., N, N] to maps [..., h, w] over a square grid of patches.

    Takes the row of the first token (the class token) if there are prefix tokens, else the mean over all rows, since
    such networks classify the mean of the patches.
    """
    row = rows[..., 0, :] if num_prefix else rows.mean(-2)
    patches = row[..., num_prefix:]
    side = round(patches.shape[-1] ** 0.5)
    assert side * side == patches.shape[-1], f"{patches.shape[-1]} patches do not form a square"
    return patches.unflatten(-1, (side, side))


def attention_figure(images: Images, attention: Tensor, *, num_prefix: int, names: Sequence[str], title: str) -> Figure:
    """Draw a row per image: the image, the rollout as an overlay, and the heads of the last layer."""
    heads = patch_map(attention[-1], num_prefix=num_prefix)[:, :MAX_HEADS]
    rolled = patch_map(rollout(attention), num_prefix=num_prefix)
    num_rows, num_columns = len(rolled), 2 + heads.shape[1]
    with styled():
        figure = Figure(figsize=(1.45 * num_columns + 0.3, 1.6 * num_rows + 0.7))
        titled(figure, title)
        grid = figure.subplots(num_rows, num_columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.2})
        for row, axes in enumerate(grid):
            pixels = images.pixels[row].numpy()
            # stretches the patch grid over the pixels of the image
            extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
            axes[0].imshow(pixels, interpolation="nearest")
            axes[0].set_title(shortened(names[int(images.labels[row])], 15), size=9)
            axes[1].imshow(pixels.mean(2), cmap="gray", interpolation="nearest")
            axes[1].imshow(rolled[row].numpy(), cmap=HEAT, alpha=0.7, interpolation="bilinear", extent=extent)
            for number, head in enumerate(heads[row]):
                axes[2 + number].imshow(head.numpy(), cmap=HEAT, interpolation="nearest", extent=extent)
            if row == 0:  # column titles; those of the first column are class names
                axes[1].set_title("rollout", size=9)
                for number in range(heads.shape[1]):
                    axes[2 + number].set_title(f"head {number + 1}", size=9, weight="normal")
            for one in axes:
                bare(one)
    return figure


@contextmanager
def _unfused(layers: Sequence[Attention]) -> Iterator[None]:
    """Context in which the layers compute attention step by step."""
    before = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False  # type: ignore[misc]
        yield
    finally:
        for layer, was_fused in zip(layers, before, strict=True):
            layer.fused_attn = was_fused  # type: ignore[misc]

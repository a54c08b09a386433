"""A limit on the size of convolution kernels (training.max_rms), which the classifier applies after each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tencrop.config import UserError


def kernels_of(network: nn.Module, max_rms: float, *, name: str) -> list[Tensor]:
    """The weights [C_out, C_in, H, W] of all convolutions that learn. Raises UserError if there are none."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad]
    if not layers:
        raise UserError(f"training.max_rms={max_rms:g}: {name} has no convolution that learns; set it to null")
    return [layer.weight for layer in layers]


@torch.no_grad()
def limit_rms(kernels: Sequence[Tensor], max_rms: float) -> None:
    """Scale each kernel [C_in, H, W] whose root mean square (RMS) is above max_rms down to max_rms, in place.

    The kernels of one output channel each, as in Zeiler and Fergus 2013, section 3: with it, a few kernels of the first
    layer do not dominate the others. A kernel within the limit keeps its bits, as it is multiplied by 1.
    """
    for weight in kernels:
        rms = weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        weight.mul_((max_rms / rms).clamp(max=1.0))

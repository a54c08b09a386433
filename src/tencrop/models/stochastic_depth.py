"""Stochastic depth (Huang et al. 2016): training skips the residual branches of randomly chosen blocks.

Registered with timm: `resnet152_stochastic_depth`.
"""

from __future__ import annotations

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from tencrop.models.registry import register
from tencrop.models.resnet import resnet


def with_stochastic_depth(network: ResNet, last_survival: float) -> ResNet:
    """Add stochastic depth in place, with linear decay: block l of L has the survival probability
    p_l = 1 - l / L * (1 - last_survival).

    Raises ValueError if last_survival is not in (0, 1] or if blocks already have timm's drop-path.
    """
    if not 0 < last_survival <= 1:
        raise ValueError(f"last_survival={last_survival} is not a probability above 0; the paper's is 0.5")
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if any(block.drop_path is not None for block in blocks):
        raise ValueError("drop_path_rate is timm's drop-path, which would replace stochastic depth; use last_survival")
    # timm's blocks apply drop_path to the branch just before they add the shortcut, which is where the paper multiplies
    # the first block is dropped as well, with probability (1 - last_survival) / L; timm's linear rule starts at 0
    for number, block in enumerate(blocks, start=1):
        block.drop_path = StochasticDepth(drop_rate=number / len(blocks) * (1 - last_survival))
    return network


class StochasticDepth(nn.Module):
    """Residual branch kept or zeroed for a whole batch in training, scaled by 1 - drop_rate in testing.

    timm's DropPath instead draws for each image and rescales in training. A batch here is the global batch: all devices
    and micro-batches drop the same branches, unless other layers need separate draws (training/dropout.py). A dropped
    branch is still computed and gets zero gradients, so every BatchNorm sees every batch. The authors' code skips
    dropped branches, which saves their time; here training is not faster.
    """

    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch * (1 - self.drop_rate)
        # one number for the batch, drawn on the device: a Python draw would make the step wait for it
        return branch * torch.empty((), dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.drop_rate)

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate:g}"


@register
def resnet152_stochastic_depth(num_classes: int = 1000, *, last_survival: float = 0.5, **options) -> ResNet:
    """The paper's ImageNet network: ResNet-152 of fb.resnet.torch (stride in the 3 x 3 convolution), 50 blocks."""
    return with_stochastic_depth(resnet(Bottleneck, 152, num_classes, **options), last_survival)

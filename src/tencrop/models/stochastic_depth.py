"""Deep networks with stochastic depth (Huang et al. 2016): residual blocks that a mini-batch may pass by.

Registered with timm: `resnet152_stochastic_depth`. Built by factory.py.
"""

from __future__ import annotations

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from tencrop.models.registry import register
from tencrop.models.resnet import resnet


def with_stochastic_depth(network: ResNet, last_survival: float) -> ResNet:
    """The same network, block l of L surviving with p_l = 1 - l / L * (1 - last_survival): the linear decay.

    Raises ValueError where last_survival is no probability above 0, and where blocks have timm's drop-path already.
    """
    if not 0 < last_survival <= 1:
        raise ValueError(f"last_survival={last_survival} is not a probability above 0; the paper's is 0.5")
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if any(block.drop_path is not None for block in blocks):
        raise ValueError("drop_path_rate is timm's drop-path, which would replace stochastic depth; use last_survival")
    for number, block in enumerate(blocks, start=1):
        block.drop_path = StochasticDepth(drop_rate=number / len(blocks) * (1 - last_survival))
    return network


class StochasticDepth(nn.Module):
    """A block's residual branch: in training all of it or zeros, for a whole batch; in testing 1 - drop_rate times it.

    As in the paper, and unlike timm's DropPath, which draws for each image and rescales in training. A batch is a
    device's micro-batch: one draw is made for each. The branch is computed even where it is dropped, and its gradients
    are zeros then: every BatchNorm sees every batch, where the authors' code passes the dropped ones by.
    """

    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch * (1 - self.drop_rate)
        return branch * torch.empty((), dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.drop_rate)

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate:g}"


@register
def resnet152_stochastic_depth(num_classes: int = 1000, *, last_survival: float = 0.5, **options) -> ResNet:
    """The paper's ImageNet network: fb.resnet.torch's ResNet-152 (so the stride in the 3 x 3) of 50 blocks."""
    return with_stochastic_depth(resnet(Bottleneck, 152, num_classes, **options), last_survival)

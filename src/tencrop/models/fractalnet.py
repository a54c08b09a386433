"""FractalNet (Larsson, Maire and Shakhnarovich 2017) with drop-path. Registered with timm: `fractalnet34`.

Built by factory.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tencrop.models.alexnet import scaled
from tencrop.models.mobilenet import convolution
from tencrop.models.registry import register


class FractalNet(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 164,031,016 parameters for fractalnet34. Native resolution 224.

    The rule f_1 = convolution, f_(C+1) = (f_C after f_C) joined with a convolution: column c = 1 .. C of a block has
    2^(c-1) convolutions (3 x 3, BatchNorm, ReLU), and where columns end together they are joined by their mean, all
    at once. A block ends with 2 x 2 maximum pooling of each column, joined behind it, as in the authors' generator for
    CIFAR. The longest path of B blocks has B * 2^(C-1) convolutions.

    Drop-path, in training: half of the batches (`drop_global`) run through one column of the whole network, drawn
    evenly; in the others every join drops each input with probability `drop_local`, and keeps one at random where it
    dropped all. A join is the mean of the inputs that are kept, so nothing is rescaled in testing, when all are. Drawn
    once for a device's micro-batch. What is dropped is computed all the same, with gradients of zero, so that every
    BatchNorm sees every batch; a join that the chosen column does not reach then takes all its inputs. The authors
    also offer to train all columns apart beside the whole on the same batch, which is not done here.

    Not verified: the ImageNet network. The paper prints no table of it, and its authors released no definition. Ours
    has 4 blocks of 4 columns, which with the first convolution and the linear layer makes the 34, and a third party's
    128, 256, 512, 1024 maps; the stem with its pooling is ResNet-34's, with which the paper compares (without the
    pooling the network would cost about 96 billion multiply-adds instead of 24). First weights: He et al.'s for ReLUs.
    Drop-path's 0.15 and 0.5 are from memory and CIFAR's; those of ImageNet are not known.
    `width` scales every layer but the last.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        num_maps: Sequence[int] = (128, 256, 512, 1024),
        num_columns: int = 4,
        width: float = 1.0,
        drop_local: float = 0.15,
        drop_global: float = 0.5,
    ):
        super().__init__()
        for name, rate in (("drop_local", drop_local), ("drop_global", drop_global)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}={rate} is not a probability; the paper's are 0.15 (local) and 0.5 (global)")
        self.num_columns, self.drop_global = num_columns, drop_global
        widths = [scaled(number, width) for number in (64, *num_maps)]
        self.stem = convolution(3, widths[0], kernel=7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            FractalBlock(num_inputs, num_outputs, num_columns, drop_local)
            for num_inputs, num_outputs in pairwise(widths)
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        column = self.draw_column(images.device) if self.training and self.drop_global > 0 else None
        maps = self.pool(self.stem(images))
        for block in self.blocks:
            maps = block(maps, column)
        return self.fc(maps.mean((2, 3)))

    def draw_column(self, device: torch.device) -> Tensor:
        """The one column of a global batch, of 0 (the shortest) to C - 1, or -1 in a local one; int64 []."""
        column = torch.randint(self.num_columns, (), device=device)
        is_global = torch.rand((), device=device) < self.drop_global
        return torch.where(is_global, column, -1)


class FractalBlock(nn.Module):
    """[N, C, H, W] -> [N, num_outputs, H // 2, W // 2]."""

    def __init__(self, num_inputs: int, num_outputs: int, num_columns: int, drop_local: float):
        super().__init__()
        self.drop_local = drop_local
        self.columns = nn.ModuleList(
            nn.Sequential(
                *(convolution(num_inputs if step == 0 else num_outputs, num_outputs) for step in range(2**column))
            )
            for column in range(num_columns)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, maps: Tensor, column: Tensor | None = None) -> Tensor:
        """column: the one of a global batch, -1 in a local one (int64 []); None where there are no global batches."""
        columns = [list(convolutions) for convolutions in self.columns]  # type: ignore[call-overload]
        length = len(columns[-1])
        heads = [maps] * len(columns)  # what each column reads next
        for step in range(1, length + 1):
            ending = [c for c in range(len(columns)) if step * len(columns[c]) % length == 0]
            ends = [columns[c][step * len(columns[c]) // length - 1](heads[c]) for c in ending]
            if step == length:
                ends = [self.pool(end) for end in ends]
            joined = join(ends, self.draw_kept(ending, column, maps.device))
            for c in ending:
                heads[c] = joined
        return joined

    def draw_kept(self, columns: list[int], column: Tensor | None, device: torch.device) -> Tensor | None:
        """Which of these columns a join keeps: bool [len(columns)], one of them true at least; None keeps all."""
        if not self.training or (column is None and self.drop_local == 0):
            return None
        is_kept = torch.rand(len(columns), device=device) >= self.drop_local
        survivor = torch.rand(len(columns), device=device)
        is_kept |= (survivor == survivor.max()) & ~is_kept.any()
        if column is not None:
            is_chosen = torch.stack([column == c for c in columns])
            is_kept = torch.where(column < 0, is_kept, is_chosen | ~is_chosen.any())
        return is_kept


def join(inputs: list[Tensor], is_kept: Tensor | None = None) -> Tensor:
    """The mean of the inputs that are kept, [N, C, H, W] each; is_kept: bool [number of inputs], None for all."""
    if is_kept is None:
        return torch.stack(inputs).mean(0)
    weights = is_kept.double() / is_kept.sum()  # scalars, which leave the type of the maps as it is
    joined = weights[0] * inputs[0]
    for weight, maps in zip(weights[1:], inputs[1:], strict=True):
        joined = joined + weight * maps
    return joined


@register
def fractalnet34(num_classes: int = 1000, **options) -> FractalNet:
    """Four blocks of four columns, in the place of the paper's ImageNet network, whose layout is not verified."""
    return FractalNet(num_classes, **options)

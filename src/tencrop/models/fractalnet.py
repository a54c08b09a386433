"""FractalNet (Larsson, Maire and Shakhnarovich 2017) with drop-path. Registered with timm: `fractalnet34`."""

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

    Expansion rule: f_1 is a convolution; f_(C+1) joins a convolution with two f_C in sequence. Column c = 1 .. C of a
    block thus has 2^(c-1) convolutions (3 x 3, BatchNorm, ReLU). Columns that end at the same depth are joined by their
    mean, all at once. At the end of a block each column is pooled (2 x 2 max) before the join, as in the authors'
    generator for CIFAR. The longest path through B blocks has B * 2^(C-1) convolutions.

    Drop-path, in training only: half of the batches (`drop_global`) run through a single column of the whole network,
    drawn uniformly. In the others, every join drops each input with probability `drop_local`; if all would be dropped,
    one at random is kept. A join is the mean of the inputs that are kept, so testing, which keeps all, needs no
    rescaling. One draw applies to the whole global batch, as in StochasticDepth. Dropped paths are computed as well,
    with zero gradients, so that every BatchNorm sees every batch; joins that the chosen column does not reach take all
    inputs. The authors' option to train the columns separately on the same batch as well is not implemented.

    The ImageNet network is not verified: the paper prints no table of it and the authors released no definition. Ours
    has 4 blocks of 4 columns, which with the first convolution and the linear layer makes 34 layers. The numbers of
    maps (128, 256, 512, 1024) are a third party's. The stem with its pooling is that of ResNet-34, with which the paper
    compares; without the pooling the network would cost about 96 billion multiply-adds instead of 24. Initialization:
    He et al.'s for ReLU. Drop-path rates 0.15 and 0.5: from memory, those for CIFAR; those for ImageNet are unknown.
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
                raise ValueError(f"{name}={rate} is not a probability; the paper uses 0.15 (local) and 0.5 (global)")
        self.num_columns, self.drop_global = num_columns, drop_global
        widths = [scaled(number, width) for number in (64, *num_maps)]
        self.stem = convolution(3, widths[0], kernel=7, stride=2)  # 112 x 112
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)  # 56 x 56; the blocks end at 28, 14, 7 and 3
        self.blocks = nn.ModuleList(
            FractalBlock(num_inputs, num_outputs, num_columns, drop_local)
            for num_inputs, num_outputs in pairwise(widths)
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        # drawn once per forward pass, since a global path uses the same column in every block
        column = self.draw_column(images.device) if self.training and self.drop_global > 0 else None
        maps = self.pool(self.stem(images))
        for block in self.blocks:
            maps = block(maps, column)
        return self.fc(maps.mean((2, 3)))

    def draw_column(self, device: torch.device) -> Tensor:
        """Draw the column of a global batch, 0 (the shortest) to C - 1, or -1 for a local batch; int64 []."""
        # A tensor, never .item(): a Python value would make every step wait for the device.
        column = torch.randint(self.num_columns, (), device=device)
        is_global = torch.rand((), device=device) < self.drop_global
        return torch.where(is_global, column, -1)


class FractalBlock(nn.Module):
    """Fractal of `num_columns` columns, then pooling: [N, C, H, W] -> [N, num_outputs, H // 2, W // 2]."""

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
        """column: that of a global batch, -1 for a local batch (int64 []); None if there are no global batches."""
        columns = [list(convolutions) for convolutions in self.columns]  # type: ignore[call-overload]
        length = len(columns[-1])
        heads = [maps] * len(columns)  # what each column reads next
        for step in range(1, length + 1):
            # column c has a convolution that ends at this depth if its spacing, length / len(column), divides `step`
            ending = [c for c in range(len(columns)) if step * len(columns[c]) % length == 0]
            ends = [columns[c][step * len(columns[c]) // length - 1](heads[c]) for c in ending]
            if step == length:
                ends = [self.pool(end) for end in ends]
            joined = join(ends, self.draw_kept(ending, column, maps.device))
            for c in ending:
                heads[c] = joined
        return joined

    def draw_kept(self, columns: list[int], column: Tensor | None, device: torch.device) -> Tensor | None:
        """Draw which of these columns a join keeps: bool [len(columns)] with at least one True; None keeps all."""
        if not self.training or (column is None and self.drop_local == 0):
            return None
        is_kept = torch.rand(len(columns), device=device) >= self.drop_local
        # drawn even if it is not needed, so that the number of random numbers does not depend on the outcome
        survivor = torch.rand(len(columns), device=device)
        is_kept |= (survivor == survivor.max()) & ~is_kept.any()
        if column is not None:
            # selected by torch.where, without a branch: `column` is on the device
            is_chosen = torch.stack([column == c for c in columns])
            is_kept = torch.where(column < 0, is_kept, is_chosen | ~is_chosen.any())
        return is_kept


def join(inputs: list[Tensor], is_kept: Tensor | None = None) -> Tensor:
    """Mean of the kept inputs, each [N, C, H, W]; is_kept: bool [number of inputs], None keeps all."""
    if is_kept is None:
        return torch.stack(inputs).mean(0)
    weights = is_kept.double() / is_kept.sum()  # 0-dimensional tensors do not promote the dtype of the maps
    joined = weights[0] * inputs[0]
    for weight, maps in zip(weights[1:], inputs[1:], strict=True):
        joined = joined + weight * maps
    return joined


@register
def fractalnet34(num_classes: int = 1000, **options) -> FractalNet:
    """Four blocks of four columns: our version of the paper's ImageNet network, whose layout is not verified."""
    return FractalNet(num_classes, **options)

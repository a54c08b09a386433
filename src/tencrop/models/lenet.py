"""LeNet-5 as LeCun, Bottou, Bengio and Haffner describe it (1998, section II.B), and in today's form.

Registered with timm: `lenet5` (60,000 trainable parameters) and `lenet5_dense`. Built by factory.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tencrop.models.registry import register

# Table I: the maps of S2 that each of the 16 maps of C3 reads
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The target of each digit in F6: a stylised 7 x 12 picture. The paper's figure 3 shows its own; these are drawn by us.
DIGIT_PICTURES = """
.#####. ...##.. .#####. .#####. ##...## ####### ..####. ####### .#####. .#####.
##...## .####.. ##...## ##...## ##...## ##..... .##.... ##...## ##...## ##...##
##...## ...##.. .....## .....## ##...## ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## ##...## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. ....##. .....## ##...## ######. ##..... ....##. .#####. ##...##
##...## ...##.. ...##.. ..####. ##...## .....## ######. ...##.. .#####. .######
##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## .....## .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## .....## .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## .....## .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... ##...## .....## ##...## ##...## ..##... ##...## ....##.
.#####. .###### ####### .#####. .....## .#####. .#####. ..##... .#####. .####..
"""


def squash(activation: Tensor) -> Tensor:
    """A tanh(S a) with A = 1.7159 and S = 2/3 (appendix A)."""
    return 1.7159 * torch.tanh(activation * (2 / 3))


class LeNet5(nn.Module):
    """[N, C >= 1, 32, 32] -> logits [N, 10]; only the first channel is read.

    The logits are minus the squared distances to the classes' pictures, so that cross-entropy on them
    is the paper's criterion (equation 9) without its constant rubbish class.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        if num_classes != 10:
            raise ValueError(f"lenet5 knows the pictures of ten digits, not {num_classes} classes; use lenet5_dense")
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConvolution()
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = RadialBasis(digit_codes())
        self.apply(init_fan_in)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.s2(squash(self.c1(images[:, :1])))
        maps = self.s4(squash(self.c3(maps)))
        features = squash(self.c5(maps)).flatten(1)
        return self.output(squash(self.f6(features)))


class LeNet5Dense(nn.Module):
    """[N, C >= 1, 32, 32] -> logits [N, K]: all maps connected, plain average pooling, a linear output."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)
        self.pool = nn.AvgPool2d(2)
        self.apply(init_fan_in)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(squash(self.c1(images[:, :1])))
        maps = self.pool(squash(self.c3(maps)))
        features = squash(self.c5(maps)).flatten(1)
        return self.output(squash(self.f6(features)))


class Subsampling(nn.Module):
    """Sums of 2 x 2 neighbours times a trained coefficient plus a bias, squashed: [N, C, 2H, 2W] -> [N, C, H, W]."""

    def __init__(self, num_maps: int):
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((num_maps,), 0.25))
        self.bias = nn.Parameter(torch.zeros(num_maps))

    def forward(self, maps: Tensor) -> Tensor:
        sums = 4 * nn.functional.avg_pool2d(maps, 2)
        return squash(sums * self.coefficient[:, None, None] + self.bias[:, None, None])


class SparseConvolution(nn.Module):
    """C3: 5 x 5 kernels between the maps of Table I only: 60 kernels and 16 biases, 1,516 parameters."""

    outputs: Tensor
    sources: Tensor

    def __init__(self) -> None:
        super().__init__()
        pairs = [(output, source) for output, sources in enumerate(C3_INPUTS) for source in sources]
        outputs, sources = torch.tensor(pairs).unbind(1)
        self.register_buffer("outputs", outputs, persistent=False)
        self.register_buffer("sources", sources, persistent=False)
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.zeros(16))
        fan_in = torch.tensor([25.0 * len(sources) for sources in C3_INPUTS])[outputs]
        with torch.no_grad():
            self.weight.uniform_(-2.4, 2.4).div_(fan_in[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        dense = self.weight.new_zeros(16, 6, 5, 5).index_put((self.outputs, self.sources), self.weight)
        return nn.functional.conv2d(maps, dense, self.bias)


class RadialBasis(nn.Module):
    """Minus the squared Euclidean distance of [N, F] features to each class's fixed code: [N, K]."""

    codes: Tensor

    def __init__(self, codes: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, features: Tensor) -> Tensor:
        return -(features[:, None] - self.codes).square().sum(2)


def digit_codes() -> Tensor:
    """[10, 84]: +1 where a digit's picture has ink, -1 elsewhere."""
    rows = [line.split() for line in DIGIT_PICTURES.split("\n") if line]
    pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures])


def init_fan_in(module: nn.Module) -> None:
    """Weights uniform in [-2.4 / F, 2.4 / F] for F inputs of a unit (appendix A); biases zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        bound = 2.4 / module.weight[0].numel()
        nn.init.uniform_(module.weight, -bound, bound)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


@register
def lenet5(num_classes: int = 10) -> LeNet5:
    """As published: 60,000 parameters."""
    return LeNet5(num_classes)


@register
def lenet5_dense(num_classes: int = 10) -> LeNet5Dense:
    """Today's form: 61,706 parameters for ten classes."""
    return LeNet5Dense(num_classes)

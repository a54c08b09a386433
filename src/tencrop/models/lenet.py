"""LeNet-5 as LeCun, Bottou, Bengio and Haffner describe it (1998, section II.B), in today's form, and its ancestor.

What is said here of the paper of 1998 is from memory or secondary sources, unverified, "Table I" and "appendix A" too:
the table of C3, the squashing function, the subsampling with its coefficients, the outputs' pictures and the first
weights. A lecture's tables print the kernels' weights of C1, C3 and the hidden layers and the 60,000 parameters.

Registered with timm: `lenet5` (60,000 trainable parameters), `lenet5_dense` and `lenet_1989`. Built by factory.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tencrop.models.registry import register

# Table I: the maps of S2 that each of the 16 maps of C3 reads
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The maps of H1 that each of the 12 maps of H2 reads in 1989: eight, "chosen according to a scheme that will not be
# described here". This scheme is ours: three groups of four maps, each reading another two thirds.
H2_INPUTS = tuple(tuple((4 * group + number) % 12 for number in range(8)) for group in range(3) for _ in range(4))

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
    """[N, C >= 1, img_size, img_size] -> logits [N, 10]; only the first channel is read. 60,000 parameters for 32.

    Units of C1 to F6, which together are the 8,084 of the lecture's comparison: 4,704 - 1,176 - 1,600 - 400 - 120 - 84.
    Connections, biases counted, of these and the output: 122,304 - 5,880 - 151,600 - 2,000 - 48,120 - 10,164 - 840,
    together the 340,908 that the paper is quoted with (by a third party; the paper itself was not read).

    The logits are minus the squared distances to the classes' pictures, so that cross-entropy on them
    is the paper's criterion (equation 9) without its constant rubbish class.
    """

    def __init__(self, num_classes: int = 10, *, img_size: int = 32):
        super().__init__()
        if num_classes != 10:
            raise ValueError(f"lenet5 knows the pictures of ten digits, not {num_classes} classes; use lenet5_dense")
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConvolution(C3_INPUTS, num_sources=6)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120 * c5_side(img_size) ** 2, 84)
        self.output = RadialBasis(digit_codes())
        self.apply(init_fan_in)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.s2(squash(self.c1(images[:, :1])))
        maps = self.s4(squash(self.c3(maps)))
        features = squash(self.c5(maps)).flatten(1)
        return self.output(squash(self.f6(features)))


class LeNet5Dense(nn.Module):
    """[N, C >= 1, img_size, img_size] -> logits [N, K]: all maps connected, average pooling, a linear output."""

    def __init__(self, num_classes: int = 10, *, img_size: int = 32):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120 * c5_side(img_size) ** 2, 84)
        self.output = nn.Linear(84, num_classes)
        self.pool = nn.AvgPool2d(2)
        self.apply(init_fan_in)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(squash(self.c1(images[:, :1])))
        maps = self.pool(squash(self.c3(maps)))
        features = squash(self.c5(maps)).flatten(1)
        return self.output(squash(self.f6(features)))


class LeNet1989(nn.Module):
    """[N, C >= 1, img_size, img_size] -> logits [N, K]; only the first channel is read. Native resolution 16.

    LeCun et al., "Backpropagation applied to handwritten zip code recognition" (1989), section 3: two layers of
    5 x 5 kernels with stride 2, 30 hidden and 10 output units, all squashed, no pooling. "Weight sharing" leaves every
    unit its own bias. Connections past the edge read a background of -1, the value of paper in images of [-1, 1]
    (in H2 too). Units, connections and parameters: input 256; H1 768, 19,968, 1,068; H2 192, 38,592, 2,592; H3 30,
    5,790, 5,790; output 10, 310, 310; together the printed 1,256, 64,660 and 9,760. The paper was read through
    third parties' notes.

    Not known: which maps H2 reads (H2_INPUTS is ours); on which sides the background is two pixels wide and on which
    one (here two on the left and the top); whether the squashing function is that of 1998, which is used here.

    The paper minimizes the squared distance of the outputs o to targets of 1 for the class and -1 for the others.
    The logits are minus that distance for each class in turn, which is 4 o plus a constant common to all classes.
    """

    background = -1.0

    def __init__(self, num_classes: int = 10, *, img_size: int = 16):
        super().__init__()
        if img_size % 4 != 0:
            raise ValueError(f"img_size={img_size} cannot be halved twice; use a multiple of 4")
        self.h1 = nn.Conv2d(1, 12, 5, stride=2, bias=False)
        self.h1_biases = UnitBiases(12, img_size // 2)
        self.h2 = SparseConvolution(H2_INPUTS, num_sources=12, stride=2, bias=False)
        self.h2_biases = UnitBiases(12, img_size // 4)
        self.h3 = nn.Linear(12 * (img_size // 4) ** 2, 30)
        self.output = nn.Linear(30, num_classes)
        self.apply(init_fan_in)

    def forward(self, images: Tensor) -> Tensor:
        maps = squash(self.h1_biases(self.h1(self.with_edge(images[:, :1]))))
        maps = squash(self.h2_biases(self.h2(self.with_edge(maps))))
        return 4 * squash(self.output(squash(self.h3(maps.flatten(1)))))

    def with_edge(self, maps: Tensor) -> Tensor:
        return nn.functional.pad(maps, (2, 1, 2, 1), value=self.background)


class Subsampling(nn.Module):
    """Sums of 2 x 2 neighbors times a trained coefficient plus a bias, squashed: [N, C, 2H, 2W] -> [N, C, H, W]."""

    def __init__(self, num_maps: int):
        super().__init__()
        # averages at first, which is our choice
        self.coefficient = nn.Parameter(torch.full((num_maps,), 0.25))
        self.bias = nn.Parameter(torch.zeros(num_maps))

    def forward(self, maps: Tensor) -> Tensor:
        sums = 4 * nn.functional.avg_pool2d(maps, 2)
        return squash(sums * self.coefficient[:, None, None] + self.bias[:, None, None])


class SparseConvolution(nn.Module):
    """5 x 5 kernels between some pairs of maps only: [N, num_sources, H, W] -> [N, len(inputs), H', W'].

    inputs: for each output map the source maps that it reads, as in C3_INPUTS (60 kernels, 16 biases).
    """

    outputs: Tensor
    sources: Tensor

    def __init__(self, inputs: Sequence[Sequence[int]], *, num_sources: int, stride: int = 1, bias: bool = True):
        super().__init__()
        pairs = [(output, source) for output, sources in enumerate(inputs) for source in sources]
        outputs, sources = torch.tensor(pairs).unbind(1)
        self.register_buffer("outputs", outputs, persistent=False)
        self.register_buffer("sources", sources, persistent=False)
        self.shape, self.stride = (len(inputs), num_sources, 5, 5), stride
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(inputs))) if bias else None
        fan_in = torch.tensor([25.0 * len(sources) for sources in inputs])[outputs]
        with torch.no_grad():
            self.weight.uniform_(-2.4, 2.4).div_(fan_in[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        dense = self.weight.new_zeros(self.shape).index_put((self.outputs, self.sources), self.weight)
        return nn.functional.conv2d(maps, dense, self.bias, self.stride)


class UnitBiases(nn.Module):
    """A bias for every unit of [N, num_maps, side, side] rather than for every map."""

    def __init__(self, num_maps: int, side: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_maps, side, side))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.bias


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


def c5_side(img_size: int) -> int:
    """Side of the maps of C5: 1 for 32."""
    side = ((img_size - 4) // 2 - 4) // 2 - 4
    if side < 1:
        raise ValueError(f"img_size={img_size} leaves nothing to layer C5; use at least 32")
    return side


def init_fan_in(module: nn.Module) -> None:
    """Weights uniform in [-2.4 / F, 2.4 / F] for F inputs of a unit (appendix A); biases zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        bound = 2.4 / module.weight[0].numel()
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@register
def lenet5(num_classes: int = 10, **options) -> LeNet5:
    """As published: 60,000 parameters."""
    return LeNet5(num_classes, **options)


@register
def lenet5_dense(num_classes: int = 10, **options) -> LeNet5Dense:
    """Today's form: 61,706 parameters for ten classes."""
    return LeNet5Dense(num_classes, **options)


@register
def lenet_1989(num_classes: int = 10, **options) -> LeNet1989:
    """The network of 1989: 9,760 parameters; which maps H2 reads is ours."""
    return LeNet1989(num_classes, **options)

"""LeNet-5 of LeCun, Bottou, Bengio and Haffner (1998, section II.B), its modern form, and the network of 1989.

Registered with timm: `lenet5` (60,000 trainable parameters), `lenet5_dense` and `lenet_1989`.

We did not read the paper of 1998. All statements about it are from memory or secondary sources and unverified,
including "Table I" and "appendix A": the connections of C3, the squashing function, the subsampling with its
coefficients, the output codes and the initialization. A lecture's tables confirm the number of weights in C1, C3 and
the hidden layers and the 60,000 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tencrop.models.registry import register

# Table I: the maps of S2 that each of the 16 maps of C3 reads. Incomplete connections break the symmetry between maps
# and need 60 kernels instead of 96.
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The 8 maps of H1 that each of the 12 maps of H2 reads in 1989, "chosen according to a scheme that will not be
# described here". This scheme is ours: three groups of four maps; each group reads a different two thirds of H1.
H2_INPUTS = tuple(tuple((4 * group + number) % 12 for number in range(8)) for group in range(3) for _ in range(4))

# The target of each digit in F6: a stylized picture of 7 x 12 pixels. We drew these; the paper's are in its figure 3.
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
    """Squashing function A tanh(S a) with A = 1.7159 and S = 2/3 (appendix A), so that f(1) = 1 and f(-1) = -1."""
    return 1.7159 * torch.tanh(activation * (2 / 3))


class LeNet5(nn.Module):
    """[N, C >= 1, img_size, img_size] -> logits [N, 10]; reads only the first channel. 60,000 parameters for 32.

    Units of C1 to F6: 4,704 - 1,176 - 1,600 - 400 - 120 - 84, in total the 8,084 of the lecture's comparison.
    Connections of these and the output, with biases: 122,304 - 5,880 - 151,600 - 2,000 - 48,120 - 10,164 - 840, in
    total 340,908, the number that a third party quotes from the paper.

    A logit is minus the squared distance to the picture of its class. Cross-entropy on these logits is the paper's
    criterion (equation 9) without its constant "rubbish" class.
    """

    def __init__(self, num_classes: int = 10, *, img_size: int = 32):
        super().__init__()
        if num_classes != 10:
            raise ValueError(f"lenet5 has output codes for ten digits, not for {num_classes} classes; use lenet5_dense")
        self.c1 = nn.Conv2d(1, 6, 5)  # 28 x 28
        self.s2 = Subsampling(6)  # 14 x 14
        self.c3 = SparseConvolution(C3_INPUTS, num_sources=6)  # 10 x 10
        self.s4 = Subsampling(16)  # 5 x 5
        self.c5 = nn.Conv2d(16, 120, 5)  # 1 x 1
        self.f6 = nn.Linear(120 * c5_side(img_size) ** 2, 84)
        self.output = RadialBasis(digit_codes())
        self.apply(init_fan_in)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.s2(squash(self.c1(images[:, :1])))
        maps = self.s4(squash(self.c3(maps)))
        features = squash(self.c5(maps)).flatten(1)
        return self.output(squash(self.f6(features)))


class LeNet5Dense(nn.Module):
    """Modern form: [N, C >= 1, img_size, img_size] -> logits [N, K]; reads only the first channel.

    C3 connects all maps, average pooling has no parameters and the output is linear.
    """

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
    """[N, C >= 1, img_size, img_size] -> logits [N, K]; reads only the first channel. Native resolution 16.

    LeCun et al., "Backpropagation applied to handwritten zip code recognition" (1989), section 3, read through third
    parties' notes: two layers of 5 x 5 kernels with stride 2, 30 hidden and 10 output units, all squashed, no pooling.
    Weights are shared across positions, biases are not. Connections beyond the edge read a background of -1, the value
    of paper in images of [-1, 1], also in H2.

    Units, connections and parameters: input 256; H1 768, 19,968, 1,068; H2 192, 38,592, 2,592; H3 30, 5,790, 5,790;
    output 10, 310, 310; in total the printed 1,256, 64,660 and 9,760.

    Unknown: which maps H2 reads (H2_INPUTS is ours); on which sides the background is two pixels wide and on which one
    (here two on the left and the top); whether the squashing function is that of 1998, which is used here.

    The paper minimizes the squared distance between the outputs o and targets of 1 for the class and -1 for the others.
    The logit of a class is minus that distance to the class's targets, which is 4 o plus a constant common to all.
    """

    background = -1.0

    def __init__(self, num_classes: int = 10, *, img_size: int = 16):
        super().__init__()
        if img_size % 4 != 0:
            raise ValueError(f"img_size={img_size} cannot be halved twice; use a multiple of 4")
        # 8 x 8 and 4 x 4 maps at 16
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
        # see the docstring: minus the squared distance, up to a constant that softmax ignores
        return 4 * squash(self.output(squash(self.h3(maps.flatten(1)))))

    def with_edge(self, maps: Tensor) -> Tensor:
        """Add the background: 5 x 5 kernels with stride 2 need three more columns and rows to halve the size."""
        return nn.functional.pad(maps, (2, 1, 2, 1), value=self.background)


class Subsampling(nn.Module):
    """Squash(coefficient x sum of 2 x 2 pixels + bias), trained for each map: [N, C, 2H, 2W] -> [N, C, H, W]."""

    def __init__(self, num_maps: int):
        super().__init__()
        # initially an average, which is our choice
        self.coefficient = nn.Parameter(torch.full((num_maps,), 0.25))
        self.bias = nn.Parameter(torch.zeros(num_maps))

    def forward(self, maps: Tensor) -> Tensor:
        sums = 4 * nn.functional.avg_pool2d(maps, 2)
        return squash(sums * self.coefficient[:, None, None] + self.bias[:, None, None])


class SparseConvolution(nn.Module):
    """5 x 5 convolution that connects only some pairs of maps: [N, num_sources, H, W] -> [N, len(inputs), H', W'].

    inputs: for each output map, the source maps that it reads. C3_INPUTS gives 60 kernels and 16 biases.
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
        # one kernel per connected pair: a masked dense weight would count, decay and store the absent ones too
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(inputs))) if bias else None
        fan_in = torch.tensor([25.0 * len(sources) for sources in inputs])[outputs]
        with torch.no_grad():
            self.weight.uniform_(-2.4, 2.4).div_(fan_in[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        # scattered into a dense weight with zeros: one convolution instead of one for each output map
        dense = self.weight.new_zeros(self.shape).index_put((self.outputs, self.sources), self.weight)
        return nn.functional.conv2d(maps, dense, self.bias, self.stride)


class UnitBiases(nn.Module):
    """One bias per unit instead of per map: [N, num_maps, side, side] -> the same shape."""

    def __init__(self, num_maps: int, side: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_maps, side, side))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.bias


class RadialBasis(nn.Module):
    """Radial basis functions: minus the squared Euclidean distance of features [N, F] to the K fixed codes: [N, K]."""

    codes: Tensor

    def __init__(self, codes: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, features: Tensor) -> Tensor:
        return -(features[:, None] - self.codes).square().sum(2)


def digit_codes() -> Tensor:
    """The pictures as codes [10, 84]: +1 for ink, -1 for background."""
    rows = [line.split() for line in DIGIT_PICTURES.split("\n") if line]
    pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures])


def c5_side(img_size: int) -> int:
    """Side of the maps of C5: 1 for 32."""
    side = ((img_size - 4) // 2 - 4) // 2 - 4
    if side < 1:
        raise ValueError(f"img_size={img_size} leaves no pixels for layer C5; use at least 32")
    return side


def init_fan_in(module: nn.Module) -> None:
    """Initialize weights uniformly in [-2.4 / fan-in, 2.4 / fan-in] (appendix A), biases to 0."""
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
    """Modern form: 61,706 parameters for ten classes."""
    return LeNet5Dense(num_classes, **options)


@register
def lenet_1989(num_classes: int = 10, **options) -> LeNet1989:
    """The network of 1989: 9,760 parameters. The connections of H2 are our choice."""
    return LeNet1989(num_classes, **options)

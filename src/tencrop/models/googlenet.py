"""GoogLeNet of Szegedy et al. (2015, table 1): 5 x 5 convolutions, response normalization, no BatchNorm.

Registered with timm: `googlenet_2014`. torchvision's `googlenet` is another network: it has BatchNorm, and 3 x 3
kernels instead of 5 x 5.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tencrop.models.alexnet import LocalResponseNorm, scaled
from tencrop.models.registry import register


class Widths(NamedTuple):
    """Number of kernels in each convolution of an inception module, in the order of table 1's columns."""

    one: int  # 1 x 1
    three_reduce: int  # 1 x 1 before the 3 x 3
    three: int
    five_reduce: int  # 1 x 1 before the 5 x 5
    five: int
    pool: int  # 1 x 1 after the max pooling


MODULES = {  # table 1; sides at 224
    "3a": Widths(64, 96, 128, 16, 32, 32),  # 28 x 28
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),  # 14 x 14
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),  # 7 x 7
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
POOLED = ("3b", "4e")  # modules followed by max pooling with stride 2
AUXILIARY = ("4a", "4d")  # modules whose output an auxiliary classifier reads (section 5)


class GoogLeNet(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; in training (logits, auxiliary logits after 4a, after 4d), each [N, K].

    6,998,552 parameters for 1000 classes, and 6,379,728 in the two auxiliary heads, which are used in training only:
    the loss weights each by `auxiliary_weight` (training/losses.py). Their fully-connected layers require training
    images of `img_size`; evaluation takes any size. `auxiliary_weight=0` builds no heads.

    Table 1 counts parameters in units of 1024 (its 112K are 114,688). Its first row contradicts itself: a 7 x 7 x 3 x
    64 convolution has 9,408 weights and 118M multiply-adds, but 2.7K and 34M are printed. Those are the numbers of a
    separable convolution with depth multiplier 8, which the authors' next paper describes (24 x 49 + 24 x 64 = 2,712;
    times 112 x 112, 34.0M). The default is the 7 x 7 convolution; `separable_stem=True` is the other.

    Taken from Caffe's GoogLeNet, not from the paper: response normalization with AlexNet's n, alpha and beta, alpha
    divided by n and k = 1, after the first and before the second pooling; pooling in ceil mode, which gives table 1's
    sides; weights drawn uniformly with variance 1 / fan-in; biases of 0.2, and 0 in the classifiers.
    `width` scales every layer but the last of each classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        img_size: int = 224,
        width: float = 1.0,
        drop_rate: float = 0.4,
        auxiliary_weight: float = 0.3,
        auxiliary_drop_rate: float = 0.7,
        lrn: bool = True,
        separable_stem: bool = False,
    ):
        super().__init__()
        side = auxiliary_side(img_size)  # only the heads depend on img_size; the trunk ends in global pooling
        if auxiliary_weight and side < 1:
            raise ValueError(f"img_size={img_size} leaves no pixels for the auxiliary heads; use at least 79")
        self.auxiliary_weight = auxiliary_weight
        features, num_maps = stem(width=width, lrn=lrn, is_separable=separable_stem)
        self.heads, classifiers = nn.ModuleDict(), []
        for name, widths in MODULES.items():
            module = Inception(num_maps, Widths(*(scaled(num_kernels, width) for num_kernels in widths)))
            features[f"inception{name}"] = module
            num_maps = module.num_outputs
            if auxiliary_weight and name in AUXILIARY:
                head = AuxiliaryHead(num_maps, side, num_classes, width=width, drop_rate=auxiliary_drop_rate)
                self.heads[f"inception{name}"] = head
                classifiers.append(head.fc2)
            if name in POOLED:
                features[f"pool{name[0]}"] = halving_pool()
        self.features = nn.Sequential(features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        fc = nn.Linear(num_maps, num_classes)
        self.classifier = nn.Sequential(OrderedDict(flat=nn.Flatten(), drop=nn.Dropout(drop_rate), fc=fc))
        self.apply(init_xavier)
        for classifier in (fc, *classifiers):
            nn.init.zeros_(classifier.bias)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps, auxiliary = images, []
        for name, layer in self.features.named_children():
            maps = layer(maps)
            # skipped in eval mode: they cost time and fail at other sizes than img_size
            if self.training and name in self.heads:
                auxiliary.append(self.heads[name](maps))
        logits = self.classifier(self.avgpool(maps))
        return (logits, *auxiliary) if auxiliary else logits


class Inception(nn.Module):
    """Figure 2b: four parallel branches, ReLU after every convolution; [N, C, H, W] -> [N, num_outputs, H, W]."""

    def __init__(self, num_inputs: int, widths: Widths):
        super().__init__()
        self.num_outputs = widths.one + widths.three + widths.five + widths.pool
        three_reduce = rectified(num_inputs, widths.three_reduce, 1)
        five_reduce = rectified(num_inputs, widths.five_reduce, 1)
        self.one = rectified(num_inputs, widths.one, 1)
        self.three = nn.Sequential(three_reduce, rectified(widths.three_reduce, widths.three, 3))
        self.five = nn.Sequential(five_reduce, rectified(widths.five_reduce, widths.five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), rectified(num_inputs, widths.pool, 1))

    def forward(self, maps: Tensor) -> Tensor:
        # the order of table 1's columns, as in Caffe's network
        return torch.cat([branch(maps) for branch in (self.one, self.three, self.five, self.pool)], dim=1)


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier (section 5): [N, C, H, W] -> [N, K].

    5 x 5 average pooling with stride 3, 128 1 x 1 kernels, 1024 units with dropout 0.7, a linear output. `side` is the
    side of the pooled maps: 4 for images of 224.
    """

    def __init__(self, num_inputs: int, side: int, num_classes: int, *, width: float, drop_rate: float):
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv = rectified(num_inputs, scaled(128, width), 1)
        self.fc1 = nn.Linear(scaled(128, width) * side**2, scaled(1024, width))
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(scaled(1024, width), num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        features = self.conv(self.pool(maps)).flatten(1)
        return self.fc2(self.drop(self.relu(self.fc1(features))))


def stem(*, width: float, lrn: bool, is_separable: bool) -> tuple[OrderedDict[str, nn.Module], int]:
    """Build the layers before the first inception module; returns them and their number of output maps.

    Sides at 224: 112, pooled to 56; 56, pooled to 28.
    """
    first, second = scaled(64, width), scaled(192, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if is_separable:
        # 3 inputs x depth multiplier 8; no ReLU before the 1 x 1 convolution
        layers["conv1_depthwise"] = nn.Conv2d(3, 24, 7, stride=2, padding=3, groups=3, bias=False)
    layers["conv1"] = rectified(24, first, 1) if is_separable else rectified(3, first, 7, stride=2)
    layers["pool1"] = halving_pool()
    if lrn:
        layers["norm1"] = LocalResponseNorm(k=1.0, alpha_over_n=True)
    layers["conv2_reduce"] = rectified(first, first, 1)
    layers["conv2"] = rectified(first, second, 3)
    if lrn:
        layers["norm2"] = LocalResponseNorm(k=1.0, alpha_over_n=True)
    layers["pool2"] = halving_pool()
    return layers, second


def rectified(
    num_inputs: int, num_outputs: int, kernel: int, *, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    """Convolution followed by ReLU; by default padded so that stride 1 keeps the size."""
    conv = nn.Conv2d(num_inputs, num_outputs, kernel, stride, kernel // 2 if padding is None else padding)
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU()))


def halving_pool() -> nn.MaxPool2d:
    """3 x 3 max pooling with stride 2 in Caffe's way: 112 -> 56, where floor mode would give 55."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def auxiliary_side(img_size: int) -> int:
    """Side of the pooled maps in the auxiliary heads: 4 for 224."""
    # conv1 and three poolings halve the side; conv1 rounds up, as does ceil mode
    side = (img_size + 1) // 2 // 2 // 2 // 2
    return (side - 5) // 3 + 1


def init_xavier(layer: nn.Module, *, bias: float = 0.2) -> None:
    """Caffe's "xavier" filler: uniform weights with variance 1 / fan-in, constant biases.

    torch's xavier_uniform_ divides by the mean of fan-in and fan-out instead.
    """
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        bound = math.sqrt(3 / layer.weight[0].numel())
        nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, bias)


@register
def googlenet_2014(num_classes: int = 1000, **options) -> GoogLeNet:
    """As published: 6,998,552 parameters, and 6,379,728 in the auxiliary heads."""
    return GoogLeNet(num_classes, **options)

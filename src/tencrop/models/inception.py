"""Inception v2, also called BN-Inception (Ioffe and Szegedy 2015), and Inception v3 with its auxiliary head.

Registered with timm: `bn_inception`, and `inception_v3_aux`, which is timm's `inception_v3` with the auxiliary head
that is used in training only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from timm.models.inception_v3 import InceptionV3
from torch import Tensor, nn

from tencrop.models.alexnet import scaled
from tencrop.models.googlenet import halving_pool
from tencrop.models.registry import register

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class Widths(NamedTuple):
    """Number of kernels per convolution, in the order of figure 5's columns; 0 omits the branch or the projection."""

    one: int  # 1 x 1
    three_reduce: int  # 1 x 1 before the 3 x 3
    three: int
    double_reduce: int  # 1 x 1 before the two 3 x 3
    double: int  # of each of the two
    project: int  # 1 x 1 after the pooling


MODULES = {  # figure 5; sides at 224
    "3a": Widths(64, 64, 64, 64, 96, 32),  # 28 x 28
    "3b": Widths(64, 64, 96, 64, 96, 64),
    "3c": Widths(0, 128, 160, 64, 96, 0),
    "4a": Widths(224, 64, 96, 96, 128, 128),  # 14 x 14
    "4b": Widths(192, 96, 128, 96, 128, 128),
    "4c": Widths(160, 128, 160, 128, 160, 96),  # figure 5 prints 128
    "4d": Widths(96, 128, 192, 160, 192, 96),  # figure 5 prints 128
    "4e": Widths(0, 128, 192, 192, 256, 0),
    "5a": Widths(352, 192, 320, 160, 224, 128),  # 7 x 7
    "5b": Widths(352, 192, 320, 192, 224, 128),
}
HALVING = ("3c", "4e")  # modules with stride 2; their pooled maps are concatenated without a projection
MAXIMUM = ("3c", "4e", "5b")  # modules with max pooling; the others use average pooling


class BNInception(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 11,188,288 parameters for 1000 classes. Native resolution 224.

    Figure 5 (appendix) is GoogLeNet with two 3 x 3 convolutions instead of each 5 x 5, three modules at 28 x 28,
    stride 2 in modules 3c and 4e, BatchNorm between every convolution and its nonlinearity, and a separable first
    convolution with depth multiplier 8. Section 4.2.1 removes response normalization and dropout (`drop_rate`); we know
    this section only from a lossy copy and from memory, unverified. No auxiliary heads: our interpretation.

    Figure 5 contradicts itself in 4c and 4d: "avg + 128" gives 608 maps where 576 are printed, and 1,056 after 4e where
    1,024 are. We follow the printed sums, with 96 projected maps, as does the authors' later code (tensorflow/models,
    slim). `projections=128` is the alternative, with 11,278,528 parameters. Neither has section 4.2's 13.6 million.

    Not in the paper: paddings and ceil-mode pooling, which give figure 5's sides; averages over pixels inside the
    image only and BatchNorm's epsilon of 0.001, both from the authors' later code; weights from N(0, 2 / fan-in), in
    the classifier N(0, 0.01^2), our choice.
    `activation="sigmoid"` is section 4.2.2's BN-x5-Sigmoid. `width` scales every layer but the last.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        width: float = 1.0,
        drop_rate: float = 0.0,
        activation: str = "relu",
        projections: int = 96,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        first, num_maps = scaled(64, width), scaled(192, width)
        features = OrderedDict(
            # neither BatchNorm nor ReLU before the 1 x 1 convolution: together they are one separable convolution
            conv1_depthwise=nn.Conv2d(3, 24, 7, stride=2, padding=3, groups=3, bias=False),
            conv1=normalized(24, first, 1, activation=activation),
            pool1=halving_pool(),
            conv2_reduce=normalized(first, first, 1, activation=activation),
            conv2=normalized(first, num_maps, 3, activation=activation),
            pool2=halving_pool(),
        )
        for name, widths in MODULES.items():
            if name in ("4c", "4d"):
                widths = widths._replace(project=projections)
            widths = Widths(*(scaled(num_kernels, width) if num_kernels else 0 for num_kernels in widths))
            stride = 2 if name in HALVING else 1
            module = Inception(num_maps, widths, stride=stride, maximum=name in MAXIMUM, activation=activation)
            features[f"inception{name}"] = module
            num_maps = module.num_outputs
        self.features = nn.Sequential(features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        fc = nn.Linear(num_maps, num_classes)
        self.classifier = nn.Sequential(OrderedDict(flat=nn.Flatten(), drop=nn.Dropout(drop_rate), fc=fc))
        for layer in self.features.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(fc.weight, std=0.01)
        nn.init.zeros_(fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images)))


class Inception(nn.Module):
    """Module of up to four parallel branches: [N, C, H, W] -> [N, num_outputs, H / stride, W / stride]."""

    def __init__(self, num_inputs: int, widths: Widths, *, stride: int, maximum: bool, activation: str):
        super().__init__()
        self.num_outputs = widths.one + widths.three + widths.double + (widths.project or num_inputs)
        self.branches = nn.ModuleDict()
        if widths.one:  # figure 5 has no 1 x 1 branch in modules with stride 2
            self.branches["one"] = normalized(num_inputs, widths.one, 1, activation=activation)
        self.branches["three"] = nn.Sequential(
            normalized(num_inputs, widths.three_reduce, 1, activation=activation),
            normalized(widths.three_reduce, widths.three, 3, stride=stride, activation=activation),
        )
        self.branches["three_twice"] = nn.Sequential(
            normalized(num_inputs, widths.double_reduce, 1, activation=activation),
            normalized(widths.double_reduce, widths.double, 3, activation=activation),
            normalized(widths.double, widths.double, 3, stride=stride, activation=activation),
        )
        if maximum:
            pool: nn.Module = halving_pool() if stride == 2 else nn.MaxPool2d(3, stride=1, padding=1)
        else:
            pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        project = [normalized(num_inputs, widths.project, 1, activation=activation)] if widths.project else []
        self.branches["pool"] = nn.Sequential(pool, *project)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches.values()], dim=1)


def normalized(num_inputs: int, num_outputs: int, kernel: int, *, activation: str, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and nonlinearity; no bias, since BatchNorm's shift replaces it (section 3.2)."""
    conv = nn.Conv2d(num_inputs, num_outputs, kernel, stride, padding=kernel // 2, bias=False)
    norm = nn.BatchNorm2d(num_outputs, eps=0.001)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, act=ACTIVATIONS[activation]()))


class InceptionV3Aux(InceptionV3):
    """[N, 3, H, W] -> logits [N, K]; in training (logits, auxiliary logits of the last 17 x 17 maps), each [N, K].

    timm's network, with the same names in its state dict: 23,834,568 parameters, and 3,326,696 in the auxiliary head,
    which is used in training only and requires images of 299. The loss weights the head by `auxiliary_weight`. The
    default is 0.4, as in the authors' code (tensorflow/models, inception/inception_model.py); the paper (Szegedy et al.
    2016) prints none. The stem follows the same code, not the paper's table 1.
    """

    def __init__(self, num_classes: int = 1000, *, auxiliary_weight: float = 0.4, **options):
        super().__init__(num_classes=num_classes, aux_logits=True, **options)
        self.auxiliary_weight = auxiliary_weight

    def forward_features(self, images: Tensor) -> Tensor:
        # timm's version returns the auxiliary logits as well, which feature extractors do not expect
        return self.forward_postaux(self.forward_preaux(images))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.forward_preaux(images)
        logits = self.forward_head(self.forward_postaux(maps))
        return (logits, self.AuxLogits(maps)) if self.training else logits


@register
def bn_inception(num_classes: int = 1000, **options) -> BNInception:
    """Inception v2 of the BatchNorm paper's appendix: 11,188,288 parameters."""
    return BNInception(num_classes, **options)


@register
def inception_v3_aux(num_classes: int = 1000, **options) -> InceptionV3Aux:
    """timm's Inception v3 with its auxiliary head in training, as published."""
    return InceptionV3Aux(num_classes, **options)

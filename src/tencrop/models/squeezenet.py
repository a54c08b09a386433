"""SqueezeNet of Iandola et al. (2016), with the bypass variants that the paper measures, and the authors' version 1.1.

Registered with timm: `squeezenet_1_0` and `squeezenet_1_1`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tencrop.models.alexnet import init_gaussian, scaled
from tencrop.models.googlenet import halving_pool, init_xavier, rectified
from tencrop.models.registry import register


class Version(NamedTuple):
    """What differs between the two releases."""

    num_kernels: int  # of conv1
    kernel: int  # side of conv1's kernels
    pooled: tuple[str, ...]  # layers followed by max pooling with stride 2
    class_padding: int  # of conv10


# Version 1.1 pools earlier, on fewer maps: 2.4 times fewer multiply-adds
VERSIONS = {
    "1.0": Version(96, 7, ("conv1", "fire4", "fire8"), 1),
    "1.1": Version(64, 3, ("conv1", "fire3", "fire5"), 0),
}
# Table 1: number of 1 x 1 squeeze kernels, and of expand kernels of each size (1 x 1 and 3 x 3)
FIRES = {
    "fire2": (16, 64), "fire3": (16, 64), "fire4": (32, 128), "fire5": (32, 128),
    "fire6": (48, 192), "fire7": (48, 192), "fire8": (64, 256), "fire9": (64, 256),
}  # fmt: skip
BYPASSES = (None, "simple", "complex")


class SqueezeNet(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 1,248,424 parameters in version 1.0 for 1000 classes. Native resolution 227.

    The paper states 224 x 224 inputs with 111 x 111 after the first layer; the authors' files (forresti/SqueezeNet),
    whose convolution has no padding, crop 227. Also from these files: ceil-mode pooling (sides 111, 55, 27, 13),
    dropout 0.5 after fire9, ReLU after the class maps, Caffe's "xavier" weights (uniform, variance 1 / fan-in), in
    conv10 N(0, 0.01^2), and biases of 0.
    conv10 has 1 x 1 kernels, yet version 1.0's file pads by 1: the average covers 15 x 15 values, and those of the
    border are the rectified biases. `class_padding=0` omits the padding, as version 1.1 and torchvision do.

    `bypass="simple"` adds the input of fire modules 3, 5, 7 and 9 to their output. "complex" also adds that
    of modules 2, 4, 6 and 8, through a 1 x 1 convolution: 1,589,672 parameters, 6.1 MiB. We could not confirm the
    7.7 MB that others quote from the paper's table 3, nor whether a ReLU follows these convolutions; here none does.
    `width` scales every layer but the last.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        version: str = "1.0",
        width: float = 1.0,
        drop_rate: float = 0.5,
        bypass: str | None = None,
        class_padding: int | None = None,
    ):
        super().__init__()
        if version not in VERSIONS:
            raise ValueError(f"version={version!r} is not one of {', '.join(VERSIONS)}")
        if bypass not in BYPASSES:
            raise ValueError(f"bypass={bypass!r} is not simple, complex or null")
        own = VERSIONS[version]
        num_maps = scaled(own.num_kernels, width)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = rectified(3, num_maps, own.kernel, stride=2, padding=0)
        layers["pool1"] = halving_pool()
        for name, widths in FIRES.items():
            squeeze, expand = (scaled(num_kernels, width) for num_kernels in widths)
            layers[name] = Fire(num_maps, squeeze, expand, bypass=bypass)
            num_maps = 2 * expand
            if name in own.pooled:
                layers[f"pool{name[-1]}"] = halving_pool()
        self.features = nn.Sequential(layers)
        padding = own.class_padding if class_padding is None else class_padding
        conv10 = nn.Conv2d(num_maps, num_classes, 1, padding=padding)
        self.classifier = nn.Sequential(
            OrderedDict(
                drop9=nn.Dropout(drop_rate),
                conv10=conv10,
                relu10=nn.ReLU(),  # logits are never negative
                pool10=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
            )
        )
        for layer in self.modules():  # init_xavier skips all but convolutions and linear layers
            init_xavier(layer, bias=0.0)
        init_gaussian(conv10, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class Fire(nn.Module):
    """Fire module: squeeze, then two parallel expand layers; [N, C, H, W] -> [N, 2 * expand, H, W]."""

    def __init__(self, num_inputs: int, squeeze: int, expand: int, *, bypass: str | None):
        super().__init__()
        self.squeeze = rectified(num_inputs, squeeze, 1)
        self.one = rectified(squeeze, expand, 1)
        self.three = rectified(squeeze, expand, 3)
        self.bypass: nn.Module | None = None
        # An identity needs equal numbers of maps. The modules that widen have none, or a convolution if "complex".
        if bypass is not None and num_inputs == 2 * expand:
            self.bypass = nn.Identity()
        elif bypass == "complex":
            self.bypass = nn.Conv2d(num_inputs, 2 * expand, 1)

    def forward(self, maps: Tensor) -> Tensor:
        squeezed = self.squeeze(maps)
        expanded = torch.cat([self.one(squeezed), self.three(squeezed)], dim=1)
        return expanded if self.bypass is None else expanded + self.bypass(maps)


@register
def squeezenet_1_0(num_classes: int = 1000, **options) -> SqueezeNet:
    """The paper's network: 1,248,424 parameters."""
    return SqueezeNet(num_classes, **options)


@register
def squeezenet_1_1(num_classes: int = 1000, **options) -> SqueezeNet:
    """The authors' version 1.1, with 2.4 times fewer multiply-adds: 1,235,496 parameters."""
    return SqueezeNet(num_classes, version="1.1", **options)

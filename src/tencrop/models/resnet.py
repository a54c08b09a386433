"""The residual networks of He et al. (2016) that timm builds otherwise or not at all, on timm's own classes.

Registered with timm: `plain18`, `plain34` (no shortcuts), `resnet{18,34}_{a,b,c}` (the three kinds of shortcut),
`resnet{50,101,152}_v1` (stride in the first 1 x 1 convolution). Built by factory.py; stochastic_depth.py uses it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from torch import Tensor, nn

from tencrop.models.alexnet import scaled
from tencrop.models.registry import register

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)


def resnet(block: type[nn.Module], depth: int, num_classes: int, *, width: float = 1.0, **options: Any) -> ResNet:
    """[N, 3, H, W] -> logits [N, K], of table 1's depth (18, 34, 50, 101 or 152) in blocks of this class.

    timm's network, but the last BatchNorm of a block starts at 1, as the others: starting it at 0 is later than the
    paper. The first weights are He et al.'s (2015), N(0, 2 / (k^2 * num_outputs)), those of the last layer torch's.
    `width` scales the blocks and not the first convolution.
    """
    channels = tuple(scaled(num_maps, width) for num_maps in WIDTHS)
    options = {"zero_init_last": False, **options}
    return ResNet(block, LAYERS[depth], num_classes=num_classes, channels=channels, **options)  # type: ignore[arg-type]


class PlainBlock(BasicBlock):
    """Two convolutions, each with BatchNorm and ReLU, and no shortcut. Raises ValueError as check_plain does."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        check_plain(options)
        super().__init__(inplanes, planes, stride, None, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)))


def check_plain(options: dict[str, Any]) -> None:
    """Raises ValueError where timm's builder gives a block what one without a shortcut would leave out of its pass."""
    wanted = {"drop_path": "drop_path_rate", "drop_block": "drop_block_rate", "attn_layer": "attn_layer",
              "aa_layer": "aa_layer"}  # fmt: skip
    for name, argument in wanted.items():
        if options.get(name) is not None:
            raise ValueError(f"{argument}: plain networks, whose blocks have no shortcut, do not have it; leave it out")


class ShortcutA(BasicBlock):
    """Identity shortcuts everywhere: where maps become more and smaller, every second pixel, and zeros behind."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        if downsample is not None:
            downsample = PaddedIdentity(planes - inplanes, stride)
        super().__init__(inplanes, planes, stride, downsample, **options)


class PaddedIdentity(nn.Module):
    """[N, C, H, W] -> [N, C + num_zeros, ceil(H / stride), ceil(W / stride)], without parameters."""

    def __init__(self, num_zeros: int, stride: int):
        super().__init__()
        self.num_zeros, self.stride = num_zeros, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_zeros))

    def extra_repr(self) -> str:
        return f"num_zeros={self.num_zeros}, stride={self.stride}"


class ShortcutC(BasicBlock):
    """A projection, 1 x 1 with BatchNorm, in the shortcut of every block."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        if downsample is None:
            downsample = downsample_conv(inplanes, planes, kernel_size=1, norm_layer=options.get("norm_layer"))
        super().__init__(inplanes, planes, stride, downsample, **options)


class BottleneckV1(Bottleneck):
    """timm's bottleneck with the stride where He et al.'s released models have it: in the first 1 x 1 convolution."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


@register
def plain18(num_classes: int = 1000, **options) -> ResNet:
    """The plain network of 18 layers."""
    return resnet(PlainBlock, 18, num_classes, **options)


@register
def plain34(num_classes: int = 1000, **options) -> ResNet:
    """The plain network of 34 layers, figure 3 middle."""
    return resnet(PlainBlock, 34, num_classes, **options)


@register
def resnet18_a(num_classes: int = 1000, **options) -> ResNet:
    """18 layers, shortcuts without parameters: as many parameters as plain18."""
    return resnet(ShortcutA, 18, num_classes, **options)


@register
def resnet18_b(num_classes: int = 1000, **options) -> ResNet:
    """18 layers, projections where dimensions change: timm's resnet18."""
    return resnet(BasicBlock, 18, num_classes, **options)


@register
def resnet18_c(num_classes: int = 1000, **options) -> ResNet:
    """18 layers, all shortcuts projections."""
    return resnet(ShortcutC, 18, num_classes, **options)


@register
def resnet34_a(num_classes: int = 1000, **options) -> ResNet:
    """34 layers, shortcuts without parameters: as many parameters as plain34."""
    return resnet(ShortcutA, 34, num_classes, **options)


@register
def resnet34_b(num_classes: int = 1000, **options) -> ResNet:
    """34 layers, projections where dimensions change: timm's resnet34."""
    return resnet(BasicBlock, 34, num_classes, **options)


@register
def resnet34_c(num_classes: int = 1000, **options) -> ResNet:
    """34 layers, all shortcuts projections."""
    return resnet(ShortcutC, 34, num_classes, **options)


@register
def resnet50_v1(num_classes: int = 1000, **options) -> ResNet:
    """50 layers; the names and shapes of all weights are those of timm's resnet50."""
    return resnet(BottleneckV1, 50, num_classes, **options)


@register
def resnet101_v1(num_classes: int = 1000, **options) -> ResNet:
    """101 layers; the names and shapes of all weights are those of timm's resnet101."""
    return resnet(BottleneckV1, 101, num_classes, **options)


@register
def resnet152_v1(num_classes: int = 1000, **options) -> ResNet:
    """152 layers; the names and shapes of all weights are those of timm's resnet152."""
    return resnet(BottleneckV1, 152, num_classes, **options)

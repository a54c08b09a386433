"""ResNets of He et al. (2016, "Deep residual learning") that timm lacks or builds differently, on timm's classes.

Registered with timm: `plain18`, `plain34` (no shortcuts), `resnet{18,34}_{a,b,c}` (shortcut options A, B and C),
`resnet{50,101,152}_v1` (stride in the first 1 x 1 convolution).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from torch import Tensor, nn

from tencrop.models.alexnet import scaled
from tencrop.models.registry import register

# Table 1: blocks per stage (conv2_x to conv5_x). Depth counts weight layers: 2 per basic block or 3 per bottleneck,
# plus the first convolution and the linear layer. Stages of a 224 image end at 56 x 56, 28 x 28, 14 x 14 and 7 x 7.
LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Maps of the 3 x 3 convolutions in each stage; a bottleneck's output has 4 times as many (timm's `expansion`).
WIDTHS = (64, 128, 256, 512)


def resnet(block: type[nn.Module], depth: int, num_classes: int, *, width: float = 1.0, **options: Any) -> ResNet:
    """Build a ResNet of table 1 from `block`: [N, 3, H, W] -> logits [N, K]; depth is 18, 34, 50, 101 or 152.

    The network is timm's, except that the last BatchNorm scale of each block is initialized to 1, not 0. Convolutions
    are initialized as in He et al. (2015), N(0, 2 / (k^2 * num_outputs)); the linear layer keeps torch's default.
    `width` scales the blocks, not the first convolution.
    """
    channels = tuple(scaled(num_maps, width) for num_maps in WIDTHS)
    # Zero initialization came with Goyal et al. (2017, section 5.1), after the paper; timm applies it by default.
    options = {"zero_init_last": False, **options}
    return ResNet(block, LAYERS[depth], num_classes=num_classes, channels=channels, **options)  # type: ignore[arg-type]


class PlainBlock(BasicBlock):
    """Basic block without its shortcut: two 3 x 3 convolutions, each with BatchNorm and ReLU.

    Raises ValueError for the options that check_plain rejects.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        check_plain(options)
        # timm passes a projection where shapes change. Dropping it keeps its weights out of the state dict.
        super().__init__(inplanes, planes, stride, None, **options)

    def forward(self, x: Tensor) -> Tensor:
        # The second ReLU follows the BatchNorm directly, where a residual block would first add the shortcut.
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)))


def check_plain(options: dict[str, Any]) -> None:
    """Raise ValueError for timm options that a plain block's forward would silently ignore."""
    # keys: the block's arguments; values: the network's arguments that a user would have passed
    unsupported = {"drop_path": "drop_path_rate", "drop_block": "drop_block_rate", "attn_layer": "attn_layer",
                   "aa_layer": "aa_layer"}  # fmt: skip
    for name, argument in unsupported.items():
        if options.get(name) is not None:
            raise ValueError(f"{argument}: plain networks have no residual blocks to apply it to; leave it out")


class ShortcutA(BasicBlock):
    """Basic block with shortcut option A (section 3.3): no parameters.

    At the start of a stage, the identity is subsampled to every second pixel and padded with maps of zeros.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        if downsample is not None:  # timm asks for a projection: the shape changes
            downsample = PaddedIdentity(planes - inplanes, stride)
        super().__init__(inplanes, planes, stride, downsample, **options)


class PaddedIdentity(nn.Module):
    """Parameter-free shortcut: [N, C, H, W] -> [N, C + num_zeros, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, num_zeros: int, stride: int):
        super().__init__()
        self.num_zeros, self.stride = num_zeros, stride

    def forward(self, x: Tensor) -> Tensor:
        # F.pad reads pairs from the last dimension backward: width, height, then maps
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_zeros))

    def extra_repr(self) -> str:
        return f"num_zeros={self.num_zeros}, stride={self.stride}"


class ShortcutC(BasicBlock):
    """Basic block with shortcut option C (section 4.1): every shortcut is a 1 x 1 projection with BatchNorm."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        if downsample is None:  # the block keeps the shape, so timm asks for an identity
            downsample = downsample_conv(inplanes, planes, kernel_size=1, norm_layer=options.get("norm_layer"))
        super().__init__(inplanes, planes, stride, downsample, **options)


class BottleneckV1(Bottleneck):
    """timm's bottleneck with the stride in the first 1 x 1 convolution, as in He et al.'s released models.

    timm and torchvision put it in the 3 x 3 convolution ("v1.5"), which costs more multiply-adds in the same weights.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # Both convolutions are padded for their own kernel, so swapping the strides keeps the output's size.
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


@register
def plain18(num_classes: int = 1000, **options) -> ResNet:
    """Table 2's plain network of 18 layers."""
    return resnet(PlainBlock, 18, num_classes, **options)


@register
def plain34(num_classes: int = 1000, **options) -> ResNet:
    """Plain network of 34 layers: figure 3, middle."""
    return resnet(PlainBlock, 34, num_classes, **options)


@register
def resnet18_a(num_classes: int = 1000, **options) -> ResNet:
    """18 layers, option A: as many parameters as plain18."""
    return resnet(ShortcutA, 18, num_classes, **options)


@register
def resnet18_b(num_classes: int = 1000, **options) -> ResNet:
    """18 layers, option B (projections where the shape changes): timm's resnet18."""
    return resnet(BasicBlock, 18, num_classes, **options)


@register
def resnet18_c(num_classes: int = 1000, **options) -> ResNet:
    """18 layers, option C: all shortcuts are projections."""
    return resnet(ShortcutC, 18, num_classes, **options)


@register
def resnet34_a(num_classes: int = 1000, **options) -> ResNet:
    """34 layers, option A: as many parameters as plain34."""
    return resnet(ShortcutA, 34, num_classes, **options)


@register
def resnet34_b(num_classes: int = 1000, **options) -> ResNet:
    """34 layers, option B (projections where the shape changes): timm's resnet34."""
    return resnet(BasicBlock, 34, num_classes, **options)


@register
def resnet34_c(num_classes: int = 1000, **options) -> ResNet:
    """34 layers, option C: all shortcuts are projections."""
    return resnet(ShortcutC, 34, num_classes, **options)


@register
def resnet50_v1(num_classes: int = 1000, **options) -> ResNet:
    """50 layers; loads weights of timm's resnet50: same names and shapes, another stride."""
    return resnet(BottleneckV1, 50, num_classes, **options)


@register
def resnet101_v1(num_classes: int = 1000, **options) -> ResNet:
    """101 layers; loads weights of timm's resnet101: same names and shapes, another stride."""
    return resnet(BottleneckV1, 101, num_classes, **options)


@register
def resnet152_v1(num_classes: int = 1000, **options) -> ResNet:
    """152 layers; loads weights of timm's resnet152: same names and shapes, another stride."""
    return resnet(BottleneckV1, 152, num_classes, **options)

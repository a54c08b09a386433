"""ResNeXt in the cardinalities of Xie et al. (2017, tables 3 and 4) that timm does not register.

Registered with timm: `resnext50_{1x64d,2x40d,4x24d,8x14d}`, `resnext101_{1x64d,2x40d,4x24d,8x14d,2x64d,1x100d}`; timm
has 32x4d of both depths and resnext101_64x4d. Without shortcuts: `resnext50_{1x64d,32x4d}_plain`.
"""

from __future__ import annotations

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from tencrop.models.registry import register
from tencrop.models.resnet import check_plain, resnet


def resnext(
    depth: int,
    cardinality: int,
    bottleneck_width: int,
    num_classes: int,
    *,
    block: type[nn.Module] = Bottleneck,
    **options,
) -> ResNet:
    """Build timm's ResNet with `cardinality` groups in the 3 x 3 convolutions: [N, 3, H, W] -> logits [N, K].

    A group has floor(planes * bottleneck_width / 64) maps, where planes is 64, 128, 256, 512 (the authors' formula).
    The stride is in the 3 x 3 convolution; shortcuts are of type B.
    """
    # Table 2 chooses the width for each cardinality such that parameters and multiply-adds stay near ResNet's
    # 1 x 64d is ResNet itself. The options come last, so that a user's cardinality= or base_width= wins.
    return resnet(block, depth, num_classes, **{"cardinality": cardinality, "base_width": bottleneck_width, **options})


class PlainBottleneck(Bottleneck):
    """timm's bottleneck without its shortcut: three convolutions, each with BatchNorm and ReLU.

    Raises ValueError for the options that check_plain rejects.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **options):
        check_plain(options)
        # None: timm's projection would stay in the state dict without being used
        super().__init__(inplanes, planes, stride, None, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.act3(self.bn3(self.conv3(x)))


# Table 3 compares these at nearly equal complexity: 1x64d has 4.1 billion multiply-adds at 50 layers, 7.8 at 101
@register
def resnext50_1x64d(num_classes: int = 1000, **options) -> ResNet:
    """Table 3's first row, which is ResNet-50."""
    return resnext(50, 1, 64, num_classes, **options)


@register
def resnext50_2x40d(num_classes: int = 1000, **options) -> ResNet:
    """Two groups of 40 maps."""
    return resnext(50, 2, 40, num_classes, **options)


@register
def resnext50_4x24d(num_classes: int = 1000, **options) -> ResNet:
    """Four groups of 24 maps."""
    return resnext(50, 4, 24, num_classes, **options)


@register
def resnext50_8x14d(num_classes: int = 1000, **options) -> ResNet:
    """Eight groups of 14 maps."""
    return resnext(50, 8, 14, num_classes, **options)


@register
def resnext101_1x64d(num_classes: int = 1000, **options) -> ResNet:
    """Table 3's 101-layer baseline, which is ResNet-101."""
    return resnext(101, 1, 64, num_classes, **options)


@register
def resnext101_2x40d(num_classes: int = 1000, **options) -> ResNet:
    """Two groups of 40 maps."""
    return resnext(101, 2, 40, num_classes, **options)


@register
def resnext101_4x24d(num_classes: int = 1000, **options) -> ResNet:
    """Four groups of 24 maps."""
    return resnext(101, 4, 24, num_classes, **options)


@register
def resnext101_8x14d(num_classes: int = 1000, **options) -> ResNet:
    """Eight groups of 14 maps."""
    return resnext(101, 8, 14, num_classes, **options)


@register
def resnext101_2x64d(num_classes: int = 1000, **options) -> ResNet:
    """Table 4: twice the multiply-adds through two groups."""
    return resnext(101, 2, 64, num_classes, **options)


@register
def resnext101_1x100d(num_classes: int = 1000, **options) -> ResNet:
    """Table 4: twice the multiply-adds through a wider ResNet-101."""
    return resnext(101, 1, 100, num_classes, **options)


@register
def resnext50_1x64d_plain(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-50 without shortcuts."""
    return resnext(50, 1, 64, num_classes, block=PlainBottleneck, **options)


@register
def resnext50_32x4d_plain(num_classes: int = 1000, **options) -> ResNet:
    """ResNeXt-50 without shortcuts."""
    return resnext(50, 32, 4, num_classes, block=PlainBottleneck, **options)

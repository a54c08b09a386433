"""Wide residual networks of basic blocks (Zagoruyko and Komodakis 2016, table 7).

Registered with timm: `wide_resnet18_{1_5,2,3}`, `wide_resnet34_{1_5,2}`. timm has table 8's bottleneck network as
`wide_resnet50_2`, whose bottlenecks are wider inside but not at their outputs; here the outputs are wider, too.
"""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet

from tencrop.models.registry import register
from tencrop.models.resnet import resnet


# Table 7's ImageNet networks. `width` is the paper's factor k for every stage; the 7 x 7 convolution keeps its 64 maps.
@register
def wide_resnet18_1_5(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-18 with blocks 1.5 times as wide."""
    return resnet(BasicBlock, 18, num_classes, **{"width": 1.5, **options})


@register
def wide_resnet18_2(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-18 with blocks twice as wide."""
    return resnet(BasicBlock, 18, num_classes, **{"width": 2.0, **options})


@register
def wide_resnet18_3(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-18 with blocks three times as wide."""
    return resnet(BasicBlock, 18, num_classes, **{"width": 3.0, **options})


@register
def wide_resnet34_1_5(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-34 with blocks 1.5 times as wide."""
    return resnet(BasicBlock, 34, num_classes, **{"width": 1.5, **options})


@register
def wide_resnet34_2(num_classes: int = 1000, **options) -> ResNet:
    """ResNet-34 with blocks twice as wide."""
    return resnet(BasicBlock, 34, num_classes, **{"width": 2.0, **options})

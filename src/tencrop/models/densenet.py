"""DenseNet-264, the only network of Huang et al. (2017, table 1) that timm lacks. Registered with timm: `densenet264`.

timm's densenet264d is another network: growth rate 48 and a deep stem.
"""

from __future__ import annotations

from timm.models.densenet import DenseNet

from tencrop.models.registry import register


@register
def densenet264(num_classes: int = 1000, **options) -> DenseNet:
    """[N, 3, H, W] -> logits [N, K]; DenseNet-BC: growth rate 32, bottlenecks of 4 * 32 maps, compression 0.5."""
    # Table 1's 6, 12, 64 and 48 layers of two convolutions. With the stem, three transitions and the classifier these
    # are 265 layers by the count that gives the paper's 121, 169 and 201.
    return DenseNet(num_classes=num_classes, **{"growth_rate": 32, "block_config": (6, 12, 64, 48), **options})

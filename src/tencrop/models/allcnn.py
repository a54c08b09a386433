"""All-CNN: the ImageNet network of Springenberg et al. (2015, table 6), with strided convolutions instead of pooling.

Registered with timm: `allcnn`.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import CeilPadding, scaled
from tencrop.models.registry import register

# Table 6: kernel, maps and stride of convolutions 1 to 11, a row per size of maps; the third of a row replaces a
# pooling layer. The twelfth convolution is 1 x 1 with one map per class.
CONVOLUTIONS = (
    (11, 96, 4), (1, 96, 1), (3, 96, 2),
    (5, 256, 1), (1, 256, 1), (3, 256, 2),
    (3, 384, 1), (1, 384, 1), (3, 384, 2),
    (3, 1024, 1), (1, 1024, 1),
)  # fmt: skip


class AllCNN(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 9,372,840 parameters for 1000 classes. Native resolution 224.

    From table 6, read through a third party's copy: kernels, widths, strides, ReLU after each convolution, dropout 0.5
    after the ninth, the average over 6 x 6 class maps. The paddings are not stated there. Ours give the 6 x 6:
    CeilPadding for the 224 pixels, as in AlexNet, none where the stride is 2, kernel // 2 where it is 1 (sides 55, 27,
    13, 6). Also unknown: whether the class maps have a ReLU (here they do: "after each convolution"), and the
    initialization (here He et al.'s for ReLU, with biases 0). At other resolutions the average covers the maps that
    remain. `width` scales every layer but the last.
    """

    def __init__(self, num_classes: int = 1000, *, width: float = 1.0, drop_rate: float = 0.5):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(pad=CeilPadding(kernel=11, stride=4))
        num_maps = 3
        for number, (kernel, num_kernels, stride) in enumerate(CONVOLUTIONS, start=1):
            num_kernels = scaled(num_kernels, width)
            layers[f"conv{number}"] = nn.Conv2d(
                num_maps, num_kernels, kernel, stride, kernel // 2 if stride == 1 else 0
            )
            layers[f"relu{number}"] = nn.ReLU()
            if number == 9:  # the last convolution with stride 2, which replaces a pooling layer
                layers["drop9"] = nn.Dropout(drop_rate)
            num_maps = num_kernels
        # instead of fully-connected layers: class maps, averaged in forward()
        layers["conv12"] = nn.Conv2d(num_maps, num_classes, 1)
        layers["relu12"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))


@register
def allcnn(num_classes: int = 1000, **options) -> AllCNN:
    """Table 6's network: 9,372,840 parameters."""
    return AllCNN(num_classes, **options)

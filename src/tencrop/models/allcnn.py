"""All-CNN: the ImageNet network of Springenberg et al. (2015, table 6), in which strides replace pooling.

Registered with timm: `allcnn`. Built by factory.py.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import CeilPadding, scaled
from tencrop.models.registry import register

# kernel, width, stride of convolutions 1 to 11; the twelfth is 1 x 1 with a map for each class
CONVOLUTIONS = (
    (11, 96, 4), (1, 96, 1), (3, 96, 2),
    (5, 256, 1), (1, 256, 1), (3, 256, 2),
    (3, 384, 1), (1, 384, 1), (3, 384, 2),
    (3, 1024, 1), (1, 1024, 1),
)  # fmt: skip


class AllCNN(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 9,372,840 parameters for 1000 classes. Native resolution 224.

    Kernels, widths, strides, a ReLU after each convolution, dropout 0.5 behind the ninth and the average of 6 x 6
    class maps are table 6's, read through a third party's copy. The paddings are not stated there. Ours are those
    that give the 6 x 6: AlexNet's 224 pixels (CeilPadding), none where the stride is 2, and kernel // 2 where it is
    1 (sides 55, 27, 13, 6). Not known either: whether the class maps have a ReLU (they have one here, "after each
    convolution"), and the initial weights, for which we take He et al.'s for ReLUs; biases are 0. The average runs
    over whatever remains of other resolutions. `width` scales every layer but the last.
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
            if number == 9:
                layers["drop9"] = nn.Dropout(drop_rate)
            num_maps = num_kernels
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
    """Table 6's network."""
    return AllCNN(num_classes, **options)

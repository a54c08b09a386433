"""MobileNet (Howard et al. 2017) in every width, and the two networks that its tables 4 and 5 compare it with.

Registered with timm: `mobilenet_v1_{100,075,050,025}`, `mobilenet_v1_conv`, `mobilenet_v1_shallow`. The resolution
multiplier is the size of the images. Built by factory.py.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import scaled
from tencrop.models.registry import register

# maps and stride of each depthwise separable convolution of table 1; the five in the middle are one in table 5
SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip
MIDDLE = slice(6, 11)


class MobileNet(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 4,231,976 parameters for width 1 and 1000 classes. Native resolution 224.

    A 3 x 3 convolution with stride 2, thirteen depthwise separable ones (3 x 3 of each map alone, then 1 x 1), each
    convolution with BatchNorm and ReLU, the average of all pixels, a linear layer. Table 1 prints stride 2 for the
    last depthwise convolution too, but maps of 7 x 7 before and behind it: its stride is 1.

    `width` is the paper's alpha; it scales every layer but the last. `separable=False`: full 3 x 3 convolutions
    instead (table 4). `shallow=True`: without the five at 14 x 14 x 512 (table 5).

    Not printed: the padding, here 1 on every side (TensorFlow's would be below and to the right where the stride is 2),
    and the first weights, here He et al.'s for ReLUs by the fan out. timm's mobilenetv1_100 has ReLU6, as the authors'
    later code; names and other layers differ too. No dropout.
    """

    def __init__(self, num_classes: int = 1000, *, width: float = 1.0, separable: bool = True, shallow: bool = False):
        super().__init__()
        layers = list(SEPARABLE)
        if shallow:
            del layers[MIDDLE]
        num_maps = scaled(32, width)
        features: OrderedDict[str, nn.Module] = OrderedDict(conv0=convolution(3, num_maps, stride=2))
        for number, (num_outputs, stride) in enumerate(layers, start=1):
            num_outputs = scaled(num_outputs, width)
            if separable:
                features[f"depthwise{number}"] = convolution(num_maps, num_maps, stride=stride, groups=num_maps)
                features[f"pointwise{number}"] = convolution(num_maps, num_outputs, kernel=1)
            else:
                features[f"conv{number}"] = convolution(num_maps, num_outputs, stride=stride)
            num_maps = num_outputs
        self.features = nn.Sequential(features)
        self.fc = nn.Linear(num_maps, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def convolution(num_inputs: int, num_outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution without bias, with BatchNorm and ReLU behind it."""
    conv = nn.Conv2d(num_inputs, num_outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(num_outputs), relu=nn.ReLU()))


@register
def mobilenet_v1_100(num_classes: int = 1000, **options) -> MobileNet:
    """Table 1's network, 1.0 MobileNet."""
    return MobileNet(num_classes, **options)


@register
def mobilenet_v1_075(num_classes: int = 1000, **options) -> MobileNet:
    """0.75 MobileNet."""
    return MobileNet(num_classes, **{"width": 0.75, **options})


@register
def mobilenet_v1_050(num_classes: int = 1000, **options) -> MobileNet:
    """0.5 MobileNet."""
    return MobileNet(num_classes, **{"width": 0.5, **options})


@register
def mobilenet_v1_025(num_classes: int = 1000, **options) -> MobileNet:
    """0.25 MobileNet."""
    return MobileNet(num_classes, **{"width": 0.25, **options})


@register
def mobilenet_v1_conv(num_classes: int = 1000, **options) -> MobileNet:
    """Table 4's Conv MobileNet."""
    return MobileNet(num_classes, **{"separable": False, **options})


@register
def mobilenet_v1_shallow(num_classes: int = 1000, **options) -> MobileNet:
    """Table 5's Shallow MobileNet."""
    return MobileNet(num_classes, **{"shallow": True, **options})

"""MobileNet (Howard et al. 2017) in four widths, and the baselines of its tables 4 and 5.

Registered with timm: `mobilenet_v1_{100,075,050,025}`, `mobilenet_v1_conv`, `mobilenet_v1_shallow`. The paper's
resolution multiplier is the image size.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import scaled
from tencrop.models.registry import register

# Table 1: output maps and stride of each depthwise separable convolution. Sides at 224: 112, 56, 28, 14, 7.
SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip
MIDDLE = slice(6, 11)  # the five equal layers at 14 x 14, which table 5 removes


class MobileNet(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 4,231,976 parameters for width 1 and 1000 classes. Native resolution 224.

    A 3 x 3 convolution with stride 2, thirteen depthwise separable convolutions (depthwise 3 x 3, then 1 x 1), each
    convolution with BatchNorm and ReLU; global average pooling, a linear layer. Table 1 prints stride 2 also for the
    last depthwise convolution, but 7 x 7 maps before and after it: its stride is 1.

    `width` is the paper's alpha; it scales every layer but the last. `separable=False` uses full 3 x 3 convolutions
    (table 4). `shallow=True` omits the five layers at 14 x 14 x 512 (table 5).

    The paper prints neither the padding, here 1 on every side (TensorFlow pads only bottom and right where the stride
    is 2), nor the initialization, here He et al.'s for ReLU by fan-out. timm's mobilenetv1_100 has ReLU6, as the
    authors' later code does; names and other layers differ too. There is no dropout.
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
            if separable:  # figure 3: BatchNorm and ReLU after both convolutions
                features[f"depthwise{number}"] = convolution(num_maps, num_maps, stride=stride, groups=num_maps)
                features[f"pointwise{number}"] = convolution(num_maps, num_outputs, kernel=1)
            else:
                features[f"conv{number}"] = convolution(num_maps, num_outputs, stride=stride)
            num_maps = num_outputs
        self.features = nn.Sequential(features)
        self.fc = nn.Linear(num_maps, num_classes)  # 1024 inputs at width 1: a quarter of all parameters

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def convolution(num_inputs: int, num_outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution without bias, BatchNorm, ReLU; padded so that stride 1 keeps the size."""
    # no bias: BatchNorm's shift replaces it. groups = num_inputs makes it depthwise.
    conv = nn.Conv2d(num_inputs, num_outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(num_outputs), relu=nn.ReLU()))


@register
def mobilenet_v1_100(num_classes: int = 1000, **options) -> MobileNet:
    """1.0 MobileNet: table 1's network."""
    return MobileNet(num_classes, **options)


@register
def mobilenet_v1_075(num_classes: int = 1000, **options) -> MobileNet:
    """0.75 MobileNet (table 6)."""
    return MobileNet(num_classes, **{"width": 0.75, **options})


@register
def mobilenet_v1_050(num_classes: int = 1000, **options) -> MobileNet:
    """0.5 MobileNet (table 6)."""
    return MobileNet(num_classes, **{"width": 0.5, **options})


@register
def mobilenet_v1_025(num_classes: int = 1000, **options) -> MobileNet:
    """0.25 MobileNet (table 6)."""
    return MobileNet(num_classes, **{"width": 0.25, **options})


@register
def mobilenet_v1_conv(num_classes: int = 1000, **options) -> MobileNet:
    """Conv MobileNet (table 4): full convolutions."""
    return MobileNet(num_classes, **{"separable": False, **options})


@register
def mobilenet_v1_shallow(num_classes: int = 1000, **options) -> MobileNet:
    """Shallow MobileNet (table 5): without the five layers at 14 x 14."""
    return MobileNet(num_classes, **{"shallow": True, **options})

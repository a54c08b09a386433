"""Network in Network: the ImageNet model of Lin, Chen and Yan. Registered with timm: `nin`. Built by factory.py."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import init_gaussian, scaled
from tencrop.models.registry import register

# Each block: width, kernel, stride, padding of its convolution, and the standard deviation of its initial weights
BLOCKS = ((96, 11, 4, 0, 0.01), (256, 5, 1, 2, 0.05), (384, 3, 1, 1, 0.01), (1024, 3, 1, 1, 0.05))


class NetworkInNetwork(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 7,595,176 parameters (29 MiB) for 1000 classes. Native resolution 224.

    The paper (ICLR 2014) has no ImageNet table. This is the model that its authors gave to the Caffe Model Zoo, read
    in third parties' copies: each convolution is followed by two of 1 x 1, all with ReLU (the last too), 3 x 3 maximum
    pooling with stride 2 whose windows may hang over the edge as in Caffe (sides 54, 27, 13, 6), dropout 0.5 (torch's
    form, which is Caffe's) before the last block, and the average of 6 x 6 class maps as logits. Weights are drawn
    from N(0, 0.05^2), in conv1, conv3 and the class maps N(0, 0.01^2); biases are 0. The average runs over whatever
    remains of other resolutions. `width` scales every layer but the last.
    """

    def __init__(self, num_classes: int = 1000, *, width: float = 1.0, drop_rate: float = 0.5):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        num_maps = 3
        for number, (num_kernels, kernel, stride, padding, std) in enumerate(BLOCKS, start=1):
            is_last = number == len(BLOCKS)
            num_kernels = scaled(num_kernels, width)
            layers[f"conv{number}"] = gaussian(nn.Conv2d(num_maps, num_kernels, kernel, stride, padding), std)
            layers[f"relu{number}"] = nn.ReLU()
            layers[f"cccp{2 * number - 1}"] = gaussian(nn.Conv2d(num_kernels, num_kernels, 1), 0.05)
            layers[f"cccp{2 * number - 1}_relu"] = nn.ReLU()
            num_outputs = num_classes if is_last else num_kernels
            layers[f"cccp{2 * number}"] = gaussian(nn.Conv2d(num_kernels, num_outputs, 1), 0.01 if is_last else 0.05)
            layers[f"cccp{2 * number}_relu"] = nn.ReLU()
            if not is_last:
                layers[f"pool{number}"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            if number == len(BLOCKS) - 1:
                layers["drop"] = nn.Dropout(drop_rate)
            num_maps = num_outputs
        self.features = nn.Sequential(layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))


def gaussian(layer: nn.Conv2d, std: float) -> nn.Conv2d:
    init_gaussian(layer, std=std)
    return layer


@register
def nin(num_classes: int = 1000, **options) -> NetworkInNetwork:
    """The Caffe Model Zoo's ImageNet model."""
    return NetworkInNetwork(num_classes, **options)

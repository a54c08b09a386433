"""Network in Network: the ImageNet model of Lin, Chen and Yan (2014). Registered with timm: `nin`."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import init_gaussian, scaled
from tencrop.models.registry import register

# For each block: output channels, kernel size, stride, padding and initial standard deviation of its first convolution.
# Feature map sizes for 224 x 224 images: 54, pooled to 27; 27, pooled to 13; 13, pooled to 6; 6.
BLOCKS = ((96, 11, 4, 0, 0.01), (256, 5, 1, 2, 0.05), (384, 3, 1, 1, 0.01), (1024, 3, 1, 1, 0.05))


class NetworkInNetwork(nn.Module):
    """[N, 3, H, W] -> logits [N, K]; 7,595,176 parameters (29 MiB) for 1000 classes. Native resolution 224.

    The paper (ICLR 2014) has no ImageNet table. This is the model that its authors published in the Caffe Model Zoo,
    reconstructed from third-party copies. Each of the four blocks is a convolution and two 1 x 1 convolutions. ReLU
    follows every convolution, even the last. Blocks 1 to 3 end with 3 x 3 max pooling with stride 2, in ceil mode as in
    Caffe. Dropout with p = 0.5 (scaled during training, in torch as in Caffe) precedes the last block. Global average
    pooling over the class maps, 6 x 6 for 224 x 224 images, gives the logits. Initial weights are drawn from
    N(0, 0.01^2) in conv1, conv3 and the last layer, and from N(0, 0.05^2) in all others; biases are 0. `width` scales
    the number of channels of every layer but the last.
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
            # cccp, "cascaded cross channel parametric pooling", is the paper's name for a 1 x 1 convolution
            layers[f"cccp{2 * number - 1}"] = gaussian(nn.Conv2d(num_kernels, num_kernels, 1), 0.05)
            layers[f"cccp{2 * number - 1}_relu"] = nn.ReLU()
            # the last 1 x 1 convolution outputs one feature map per class (global average pooling)
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
    """Initialize the layer with weights from N(0, std^2) and biases 0, and return it."""
    init_gaussian(layer, std=std)
    return layer


@register
def nin(num_classes: int = 1000, **options) -> NetworkInNetwork:
    """Network in Network for ImageNet, as in the Caffe Model Zoo: 7,595,176 parameters."""
    return NetworkInNetwork(num_classes, **options)

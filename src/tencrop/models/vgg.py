"""VGG networks A to E of Simonyan and Zisserman (2015, table 1).

Registered with timm: `vgg_a`, `vgg_a_lrn`, `vgg_b`, `vgg_c`, `vgg_d` (VGG-16), `vgg_e` (VGG-19).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tencrop.models.alexnet import LocalResponseNorm, scaled
from tencrop.models.registry import register

# Maps of the five blocks. Sides at 224, after each block's pooling: 112, 56, 28, 14, 7.
WIDTHS = (64, 128, 256, 512, 512)
# Table 1, a column each: kernel sizes of the convolutions in each block
BLOCKS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
INITIALIZATIONS = ("glorot", "normal")


class VGG(nn.Module):
    """Column `column` of table 1: [N, 3, img_size, img_size] -> logits [N, K].

    Convolutions keep the size and are followed by ReLU; each block ends with 2 x 2 max pooling with stride 2. Two
    hidden layers of 4096 units have dropout 0.5, in torch's form, which is that of the authors' Caffe. `lrn=True`
    (A-LRN) normalizes after the first convolution, as in table 1. Its constants are AlexNet's (LocalResponseNorm), from
    memory, unverified. `width` scales every layer but the last.

    Initialization: the paper draws A's weights from a normal distribution of variance 0.01 with biases 0,
    and starts B to E from layers of A. It adds that Glorot and Bengio's uniform initialization, tried after submission,
    makes this unnecessary. `init="glorot"` is therefore the default: logits of A then have standard deviation 0.03 for
    images of standard deviation 1, and 2 for images of standard deviation 58, that of mean-subtracted pixels.

    Variance 0.01 is a standard deviation of 0.1, which gives logits of 2e6 (and 1e8): no learning rate of the paper
    learns from there. `init="normal"` therefore takes 0.01 as the standard deviation, as in AlexNet, which gives 2e-5
    (and 1e-3) and learns at the paper's rate of 0.01. `init_std=0.1` follows the text literally.
    """

    def __init__(
        self,
        column: str,
        num_classes: int = 1000,
        *,
        img_size: int = 224,
        width: float = 1.0,
        drop_rate: float = 0.5,
        lrn: bool = False,
        lrn_alpha_over_n: bool = False,
        init: str = "glorot",
        init_std: float = 0.01,
    ):
        super().__init__()
        if img_size < 32:
            raise ValueError(f"img_size={img_size} is too small to be halved five times; use at least 32")
        if init not in INITIALIZATIONS:
            raise ValueError(f"init={init!r} is not one of {', '.join(INITIALIZATIONS)}")
        features: OrderedDict[str, nn.Module] = OrderedDict()
        num_maps = 3
        for block, (kernels, num_kernels) in enumerate(zip(BLOCKS[column], WIDTHS, strict=True), start=1):
            num_kernels = scaled(num_kernels, width)
            # padding 1 for 3 x 3 and 0 for C's 1 x 1: only the pooling changes the size
            for number, kernel in enumerate(kernels, start=1):
                features[f"conv{block}_{number}"] = nn.Conv2d(num_maps, num_kernels, kernel, padding=kernel // 2)
                features[f"relu{block}_{number}"] = nn.ReLU()
                # The paper normalizes in A-LRN only, found no gain and left it out of the deeper networks
                if lrn and (block, number) == (1, 1):
                    features["norm1_1"] = LocalResponseNorm(alpha_over_n=lrn_alpha_over_n)
                num_maps = num_kernels
            # Rounds down, as fc6 assumes (img_size // 32): a size that 32 does not divide loses rows and columns.
            features[f"pool{block}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(features)
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(num_maps * (img_size // 32) ** 2, hidden),  # 25,088 inputs: 103 M of D's 138 M parameters
                relu6=nn.ReLU(),
                drop6=nn.Dropout(drop_rate),  # on the first two fully-connected layers
                fc7=nn.Linear(hidden, hidden),  # 16.8 M parameters
                relu7=nn.ReLU(),
                drop7=nn.Dropout(drop_rate),
                fc8=nn.Linear(hidden, num_classes),
            )
        )
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                if init == "glorot":
                    nn.init.xavier_uniform_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, std=init_std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


@register
def vgg_a(num_classes: int = 1000, **options) -> VGG:
    """11 layers with weights: 132,863,336 parameters."""
    return VGG("A", num_classes, **options)


@register
def vgg_a_lrn(num_classes: int = 1000, **options) -> VGG:
    """A with response normalization after the first convolution."""
    return VGG("A", num_classes, lrn=True, **options)


@register
def vgg_b(num_classes: int = 1000, **options) -> VGG:
    """13 layers: 133,047,848 parameters."""
    return VGG("B", num_classes, **options)


@register
def vgg_c(num_classes: int = 1000, **options) -> VGG:
    """16 layers, three of them 1 x 1 convolutions: 133,638,952 parameters."""
    return VGG("C", num_classes, **options)


@register
def vgg_d(num_classes: int = 1000, **options) -> VGG:
    """16 layers: 138,357,544 parameters."""
    return VGG("D", num_classes, **options)


@register
def vgg_e(num_classes: int = 1000, **options) -> VGG:
    """19 layers: 143,667,240 parameters."""
    return VGG("E", num_classes, **options)

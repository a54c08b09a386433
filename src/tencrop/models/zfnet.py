"""ZFNet: Zeiler and Fergus's modification of AlexNet (2013, figure 3), and the sizes of their tables 2 and 3.

Registered with timm: `zfnet`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from tencrop.models.alexnet import LocalResponseNorm, ScaledDropout, init_gaussian, scaled
from tencrop.models.registry import register

# Figure 3: kernel, stride and padding of the convolution; whether pooling and normalization follow. Sides at 224: 110,
# pooled to 55; 26, pooled to 13; 13; 13; 13, pooled to 6. AlexNet's first layer has 11 x 11 kernels with stride 4: the
# paper found that these miss middle frequencies and cause aliasing.
LAYERS = {
    1: (7, 2, 1, True, True),
    2: (5, 2, 0, True, True),
    3: (3, 1, 1, False, False),
    4: (3, 1, 1, False, False),
    5: (3, 1, 1, True, False),
}


class ZFNet(nn.Module):
    """[N, 3, img_size, img_size] -> logits [N, K]; 62,357,608 parameters for 224 and 1000 classes.

    Printed in the paper: 96 kernels of 7 x 7 with stride 2, ReLU, 3 x 3 max pooling with stride 2, "contrast normalized
    across feature maps" to 96 maps of 55 x 55; similar operations in layers 2 to 5; no towers; 6 x 6 x 256 inputs of
    the first hidden layer; dropout 0.5 in both hidden layers; weights "initialized to 10^-2 and biases to 0".

    Not verified against the paper:
    - layer 2 (256 kernels of 5 x 5, stride 2) and the paddings: those that, with ceil-mode pooling, give figure 3's
      sides 110, 55, 26, 13, 6;
    - the constants of the contrast normalization, its absence in layers 3 to 5 and the form of dropout: AlexNet's;
    - the weights: we take "10^-2" as the standard deviation of a normal distribution, as in AlexNet, because equal
      weights would stay equal.
    The paper also renormalizes every convolution kernel whose root mean square exceeds 0.1 during training: that is
    training.max_rms in the recipe, conf/experiment/zfnet.yaml.

    `num_kernels=(96, 256, 512, 1024, 512)` is row (b) of table 2. `hidden_units` of 2048 and 8192, alone or with these
    kernels, are the last rows of table 3. The first rows of table 3, with removed layers or with 2048 and 8192 hidden
    units, modify the authors' replication of AlexNet, not this network. `remove_layers` applies the same removals to
    this network: 3 to 5 are convolutions (their pooling stays, as in AlexNet's remove_layer), 6 and 7 hidden layers.
    `width` scales every layer but the last.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        img_size: int = 224,
        num_kernels: Sequence[int] = (96, 256, 384, 384, 256),
        hidden_units: int = 4096,
        remove_layers: Sequence[int] = (),
        width: float = 1.0,
        drop_rate: float = 0.5,
        lrn: bool = True,
        lrn_alpha_over_n: bool = False,
    ):
        super().__init__()
        if len(num_kernels) != len(LAYERS):
            raise ValueError(f"num_kernels={list(num_kernels)} is not one number for each of the five convolutions")
        if not set(remove_layers) <= {3, 4, 5, 6, 7}:
            raise ValueError(f"remove_layers={list(remove_layers)} may hold only 3, 4, 5 (convolutions), 6, 7 (hidden)")
        side = pooled_side(img_size)
        if side < 1:
            raise ValueError(f"img_size={img_size} leaves no pixels for the last pooling; use 63 or more")
        features: OrderedDict[str, nn.Module] = OrderedDict()
        num_maps = 3
        for (number, layer), num_outputs in zip(LAYERS.items(), num_kernels, strict=True):
            kernel, stride, padding, is_pooled, is_normalized = layer
            if number not in remove_layers:
                num_outputs = scaled(num_outputs, width)
                features[f"conv{number}"] = nn.Conv2d(num_maps, num_outputs, kernel, stride, padding)
                features[f"relu{number}"] = nn.ReLU()
                num_maps = num_outputs
            if is_pooled:  # kept if the convolution is removed, so that the hidden layers still read 6 x 6
                features[f"pool{number}"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            if lrn and is_normalized:  # after the pooling, where AlexNet normalizes before it
                features[f"norm{number}"] = LocalResponseNorm(alpha_over_n=lrn_alpha_over_n)
        self.features = nn.Sequential(features)
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        num_inputs = num_maps * side**2
        for number in (6, 7):
            if number not in remove_layers:
                num_outputs = scaled(hidden_units, width)
                classifier[f"fc{number}"] = nn.Linear(num_inputs, num_outputs)
                classifier[f"relu{number}"] = nn.ReLU()
                classifier[f"drop{number}"] = ScaledDropout(drop_rate)
                num_inputs = num_outputs
        # fc8 reads the maps directly if both hidden layers are removed
        classifier["fc8"] = nn.Linear(num_inputs, num_classes)
        self.classifier = nn.Sequential(classifier)
        self.apply(init_gaussian)  # all biases 0, unlike AlexNet's

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def pooled_side(img_size: int) -> int:
    """Side of the maps after the last pooling: 6 for 224; 0 if the image is too small."""
    side = img_size
    for kernel, stride, padding, is_pooled, _ in LAYERS.values():
        side = (side + 2 * padding - kernel) // stride + 1
        if is_pooled:
            side = side // 2 if side >= 3 else 0
    return side


@register
def zfnet(num_classes: int = 1000, **options) -> ZFNet:
    """Figure 3's network: 62,357,608 parameters."""
    return ZFNet(num_classes, **options)

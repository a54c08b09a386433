"""AlexNet of Krizhevsky, Sutskever and Hinton (2012), with the variants that the paper measures.

Registered with timm: `alexnet_2012`, `alexnet_2012_one_tower` (section 3.2) and `alexnet_2012_figure1` (CIFAR-10).
The modules of later networks import its layers (LocalResponseNorm, ScaledDropout) and `scaled`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tencrop.models.registry import register

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Layer(NamedTuple):
    """A convolution of section 3.5, and what follows it."""

    kernel: int
    stride: int
    padding: int
    reads_own_tower_only: bool
    is_normalized: bool
    is_pooled: bool


# Section 3.5 and figure 2. Sides of the maps at 224: 55, pooled to 27; 27, pooled to 13; 13; 13; 13, pooled to 6.
# The paper prints no padding; these paddings give figure 2's sides.
LAYERS = {
    1: Layer(11, 4, 0, False, True, True),
    2: Layer(5, 1, 2, True, True, True),
    3: Layer(3, 1, 1, False, False, False),
    4: Layer(3, 1, 1, True, False, False),
    5: Layer(3, 1, 1, True, False, True),
    6: Layer(3, 1, 1, True, False, False),  # only with six_convolutions
}
# Section 5: a bias of 1 gives the ReLUs positive inputs at first, which speeds up the early stages of learning
LAYERS_WITH_UNIT_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")


class AlexNet(nn.Module):
    """[N, 3, img_size, img_size] -> logits [N, K]; 60,965,224 parameters for 224 and 1000 classes.

    Layers 2, 4 and 5 are grouped convolutions with one group per tower; layer 3 and the fully-connected layers read
    both towers. The response normalization sums only over kernels of the same tower. The paper does not state this; we
    infer it because the towers were on different GPUs, which "communicate only in certain layers", first in layer 3.
    Section 3.3 suggests otherwise: "N is the total number of kernels in the layer". Section 3.5 applies ReLU to "the
    output of every convolutional and fully-connected layer"; the last layer has none, since it feeds a softmax.

    Units per layer at 224: 290,400 - 186,624 - 64,896 - 64,896 - 43,264 - 4096 - 4096 - 1000, in total 659,272
    (the paper: 650,000). Figure 2 prints 253,440 for the first, which is 55 x 48 x 96, but its maps are 55 x 55.

    Options, each from the paper:
    - `lrn=False`: no response normalization (section 3.3).
    - `overlapping=False`: 2 x 2 instead of 3 x 3 pooling, with the same stride and output sizes (section 3.4).
    - `activation="tanh"` (section 3.1).
    - `six_convolutions=True`: an extra convolution after the last pooling layer (section 6). The paper does not print
      its shape; we use that of layer 5, grouped by tower, with bias 0.
    - `remove_layer=k`: without convolution k, 2 to 5 (section 7: "any of the middle layers"). The paper does not say
      how the remaining layers were connected. We remove the nonlinearity and normalization with the convolution, keep
      its pooling and keep the groups of the next layer, so that no map size changes.
    - `lrn_alpha_over_n=True`: see LocalResponseNorm.
    - `width` scales every layer but the last.
    - `init_std`: standard deviation of the initial weights. The paper's 0.01 is meant for full width; at width 0.25 the
      signal shrinks in every layer, and the loss stayed at ln(10) for 6 epochs of 5,000 images (`alexnet_tiny10`).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        img_size: int = 224,
        num_kernels: tuple[int, ...] = (96, 256, 384, 384, 256),
        num_towers: int = 2,
        width: float = 1.0,
        drop_rate: float = 0.5,
        activation: str = "relu",
        lrn: bool = True,
        lrn_alpha_over_n: bool = False,
        overlapping: bool = True,
        six_convolutions: bool = False,
        remove_layer: int | None = None,
        init_std: float = 0.01,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if remove_layer not in (None, 2, 3, 4, 5):
            raise ValueError(f"remove_layer={remove_layer} is not a convolution after the first; use 2, 3, 4 or 5")
        pool_kernel = 3 if overlapping else 2  # stride 2 either way: the paper's s = 2 with z = 3 or z = 2
        side = pooled_side(img_size, pool_kernel)
        if side < 1:
            raise ValueError(
                f"img_size={img_size} leaves no pixels for the last pooling; use {64 if overlapping else 36} or more"
            )
        if six_convolutions:  # reads pool5 (6 x 6) and keeps its size
            num_kernels = (*num_kernels, num_kernels[-1])
        features: OrderedDict[str, nn.Module] = OrderedDict(pad=CeilPadding(LAYERS[1].kernel, LAYERS[1].stride))
        num_maps = 3
        for number, num_outputs in enumerate(num_kernels, start=1):
            layer = LAYERS[number]
            if number != remove_layer:
                # each tower is rounded on its own, so that the groups always divide the maps
                num_outputs = num_towers * scaled(num_outputs / num_towers, width)
                groups = num_towers if layer.reads_own_tower_only else 1
                features[f"conv{number}"] = nn.Conv2d(
                    num_maps, num_outputs, layer.kernel, layer.stride, layer.padding, groups=groups
                )
                features[f"{activation}{number}"] = ACTIVATIONS[activation]()
                # over the maps of one tower; see the docstring
                if lrn and layer.is_normalized:
                    features[f"norm{number}"] = LocalResponseNorm(num_towers, alpha_over_n=lrn_alpha_over_n)
                num_maps = num_outputs
            if layer.is_pooled:  # after the normalization: section 3.5
                features[f"pool{number}"] = nn.MaxPool2d(pool_kernel, stride=2)
        self.features = nn.Sequential(features)
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(  # dropout after both hidden layers: section 4.2
            OrderedDict(
                fc6=nn.Linear(num_maps * side**2, hidden),  # 9216 inputs; 62% of all parameters
                act6=ACTIVATIONS[activation](),
                drop6=ScaledDropout(drop_rate),
                fc7=nn.Linear(hidden, hidden),
                act7=ACTIVATIONS[activation](),
                drop7=ScaledDropout(drop_rate),
                fc8=nn.Linear(hidden, num_classes),
            )
        )
        self.init_weights(init_std)

    def init_weights(self, std: float) -> None:
        """Section 5: weights from N(0, std^2); biases 1 in conv2, conv4, conv5, fc6 and fc7, 0 elsewhere."""
        for name, layer in (*self.features.named_children(), *self.classifier.named_children()):
            init_gaussian(layer, std=std, bias=1.0 if name in LAYERS_WITH_UNIT_BIASES else 0.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class Figure1Net(nn.Module):
    """Four-layer network for CIFAR-10, ReLU or tanh: [N, 3, img_size, img_size] -> logits [N, K].

    Figure 1 describes only "a particular four-layer convolutional network" with ReLU or tanh units and "no
    regularization of any kind"; its layers, widths, initialization and learning rates are not known. We use the example
    of cuda-convnet that has four weight layers (layers-18pct.cfg, read through a copy in Apache SINGA): 32, 32 and 64
    kernels of 5 x 5, each followed by 3 x 3 pooling with stride 2 (max, then average), and a linear output. Weights
    are drawn from N(0, 0.0001^2) in the first layer, N(0, 0.01^2) in the others. That file puts the first ReLU after
    its pooling, which gives the same values because both are monotone.

    `lrn=True` adds that file's normalizations (n = 3, alpha 5e-5 / 3, beta 0.75, k = 1), which figure 1 does not
    mention. `init_std` sets one standard deviation for all layers: with tanh, 0.0001 learns slowly at first.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        img_size: int = 32,
        activation: str = "relu",
        lrn: bool = False,
        init_std: float | None = None,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if img_size < 12:
            raise ValueError(f"img_size={img_size} is too small for three poolings; use at least 12")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        num_maps, side = 3, img_size
        # maps at 32: conv 32 x 32, pooled to 16 x 16, 8 x 8 and 4 x 4
        for number, num_outputs in enumerate((32, 32, 64), start=1):
            pool = nn.MaxPool2d if number == 1 else nn.AvgPool2d
            layers[f"conv{number}"] = nn.Conv2d(num_maps, num_outputs, 5, padding=2)
            layers[f"{activation}{number}"] = ACTIVATIONS[activation]()
            # cuda-convnet's windows may extend past the edge
            layers[f"pool{number}"] = pool(3, stride=2, ceil_mode=True)
            if lrn and number < 3:
                layers[f"norm{number}"] = LocalResponseNorm(n=3, alpha=5e-5, k=1.0, alpha_over_n=True)
            num_maps, side = num_outputs, side // 2
        self.features = nn.Sequential(layers)
        self.fc4 = nn.Linear(num_maps * side**2, num_classes)
        for name, layer in (*self.features.named_children(), ("fc4", self.fc4)):
            init_gaussian(layer, std=init_std or (1e-4 if name == "conv1" else 0.01))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc4(self.features(images).flatten(1))


class CeilPadding(nn.Module):
    """Zero padding on the right and bottom, so that a strided convolution covers the whole image (cuda-convnet).

    The paper's images are 224 x 224, and (224 - 11) / 4 is not an integer. The author's code computes
    1 + ceil((224 - 11) / 4) = 55 windows; the last extends 3 pixels beyond the image and reads zeros there, which are
    the mean after its subtraction. Three columns and rows of zeros are equivalent and explain the often quoted 227.
    Images of 227 need no padding and get none.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, images: Tensor) -> Tensor:
        # -x % stride: pixels missing to the next multiple of the stride. torch's padding= would add to all four sides.
        bottom, right = (-(side - self.kernel) % self.stride for side in images.shape[-2:])
        return nn.functional.pad(images, (0, right, 0, bottom))


class LocalResponseNorm(nn.Module):
    """Local response normalization (section 3.3) within each tower: [N, C, H, W] -> [N, C, H, W].

    b_i = a_i / (k + alpha sum_j a_j^2)^beta, summed over the n maps j around i that belong to the tower of i.

    The paper's formula does not divide alpha by n; neither do we by default. The author's later code (cuda-convnet2,
    layer.py) divides the configured 0.0001 by n = 5, as do Caffe and torch.nn.LocalResponseNorm. Which one produced the
    printed results is not known. `alpha_over_n=True` divides.
    """

    def __init__(
        self,
        num_towers: int = 1,
        *,
        n: int = 5,
        k: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        alpha_over_n: bool = False,
    ):
        super().__init__()
        self.num_towers, self.n, self.k, self.beta = num_towers, n, k, beta
        self.alpha = alpha / n if alpha_over_n else alpha

    def forward(self, maps: Tensor) -> Tensor:
        # towers become part of the batch, so that no window crosses from one tower into the other
        towers = maps.unflatten(1, (self.num_towers, -1)).flatten(0, 1)
        if maps.dtype in (torch.float16, torch.bfloat16):
            towers = towers.float()  # squares of activations above 255 overflow float16
        # for even n the window has one map more before i than after it, as torch's has
        sums = WindowSum.apply(towers * towers, self.n // 2, (self.n - 1) // 2)
        normed = towers / sums.mul(self.alpha).add(self.k).pow(self.beta)
        return normed.to(maps.dtype).reshape(maps.shape)


class WindowSum(torch.autograd.Function):
    """Deterministic sum over a window of maps, `before` and `after` the current one: [N, C, H, W] -> [N, C, H, W].

    torch's response normalization uses avg_pool3d, whose CUDA gradient is accumulated in an undefined order. Adding
    shifted slices fixes the order. The gradient is a window sum as well, so neither pass saves a tensor for the other.
    """

    @staticmethod
    def forward(context: Any, maps: Tensor, before: int, after: int) -> Tensor:
        context.reach = (after, before)  # map j was read by outputs j - after to j + before: the mirrored window
        sums = maps.clone()
        for shift in range(1, before + 1):
            sums[:, shift:] += maps[:, :-shift]
        for shift in range(1, after + 1):
            sums[:, :-shift] += maps[:, shift:]
        return sums

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return WindowSum.apply(gradient, *context.reach), None, None


class ScaledDropout(nn.Module):
    """The paper's dropout (section 4.2): no rescaling in training, outputs times 1 - drop_rate in testing.

    torch's dropout divides by 1 - drop_rate in training instead. Both can represent the same functions, but the same
    weights give activations and gradients of another scale: the paper's learning rate is meant for this form.
    """

    def __init__(self, drop_rate: float):
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate={drop_rate} is not in [0, 1)")
        self.drop_rate = drop_rate

    def forward(self, activations: Tensor) -> Tensor:
        # in training this undoes torch's division by 1 - drop_rate; in testing it is the paper's factor
        return nn.functional.dropout(activations, self.drop_rate, self.training) * (1 - self.drop_rate)


def scaled(number: float, width: float) -> int:
    """Number of maps or units at this width multiplier: rounded to the nearest integer, at least 1."""
    return max(1, round(width * number))


def pooled_side(img_size: int, pool_kernel: int) -> int:
    """Side of the maps after the third pooling: 6 for 224. Below 1, the image is too small."""
    side = 1 + -((LAYERS[1].kernel - img_size) // LAYERS[1].stride) if img_size >= LAYERS[1].kernel else 0
    for _ in range(3):  # convolutions 2 to 5 keep the side: 55, 27, 13, 6
        side = (side - pool_kernel) // 2 + 1
    return side


def init_gaussian(layer: nn.Module, *, std: float = 0.01, bias: float = 0.0) -> None:
    """Draw a convolution's or linear layer's weights from N(0, std^2), set its biases; ignore other layers."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(layer.weight, std=std)
        assert layer.bias is not None
        nn.init.constant_(layer.bias, bias)


@register
def alexnet_2012(num_classes: int = 1000, **options) -> AlexNet:
    """As published, in two towers: 60,965,224 parameters."""
    return AlexNet(num_classes, **options)


@register
def alexnet_2012_one_tower(num_classes: int = 1000, **options) -> AlexNet:
    """One tower with half the kernels, except in the last convolution (section 3.2, footnote 2)."""
    return AlexNet(num_classes, num_kernels=(48, 128, 192, 192, 256), num_towers=1, **options)


@register
def alexnet_2012_figure1(num_classes: int = 10, **options) -> Figure1Net:
    """Figure 1's four-layer network for CIFAR-10, with ReLU or tanh."""
    return Figure1Net(num_classes, **options)

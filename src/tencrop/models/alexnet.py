"""AlexNet as Krizhevsky, Sutskever and Hinton describe it (2012), with the variants that their paper measures.

Registered with timm: `alexnet_2012`, `alexnet_2012_one_tower` (section 3.2) and `alexnet_2012_figure1` (CIFAR-10).
Built by factory.py; the modules of the later networks use its layers and `scaled`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tencrop.models.registry import register

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Layer(NamedTuple):
    kernel: int
    stride: int
    padding: int
    reads_own_tower_only: bool
    is_normalized: bool
    is_pooled: bool


LAYERS = {
    1: Layer(11, 4, 0, False, True, True),
    2: Layer(5, 1, 2, True, True, True),
    3: Layer(3, 1, 1, False, False, False),
    4: Layer(3, 1, 1, True, False, False),
    5: Layer(3, 1, 1, True, False, True),
    6: Layer(3, 1, 1, True, False, False),  # only with six_convolutions
}
LAYERS_WITH_BIASES = ("conv2", "conv4", "conv5", "fc6", "fc7")  # of 1 at first


class AlexNet(nn.Module):
    """[N, 3, img_size, img_size] -> logits [N, K]; 60,965,224 parameters for 224 and 1000 classes.

    Two towers are grouped convolutions in layers 2, 4 and 5; layer 3 and the fully-connected layers read both. That the
    response normalization sums over kernels of its own tower is our reading: the towers lay on different GPUs, which
    "communicate only in certain layers", and the first of these is layer 3. Against it stands section 3.3, where "N is
    the total number of kernels in the layer". "The ReLU non-linearity is applied to the output of every
    convolutional and fully-connected layer" (section 3.5) cannot include the last, whose output is a softmax's input.

    Units of the layers at 224: 290,400 - 186,624 - 64,896 - 64,896 - 43,264 - 4096 - 4096 - 1000, together 659,272
    (the paper: 650,000). Figure 2 prints 253,440 for the first, which is 55 x 48 x 96, but its maps are 55 x 55.

    Options, each a row or a remark of the paper:
    `lrn=False` (section 3.3); `overlapping=False`: 2 x 2 pooling in place of 3 x 3, same stride and sizes (section
    3.4); `activation="tanh"` (section 3.1);
    `six_convolutions=True`: an extra convolution over the last pooling layer (section 6). Its shape is not printed;
    ours is layer 5's, within the towers, with bias 0;
    `remove_layer=k`: without the convolution k of 2 to 5 (section 7: "any of the middle layers"). How the rest was
    joined is not printed; here its nonlinearity and normalization go with it, its pooling stays, and the next layer
    reads what is left in the same way, so that all map sizes stay.
    `lrn_alpha_over_n=True`: see LocalResponseNorm. `width` scales every layer but the last.
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
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if remove_layer not in (None, 2, 3, 4, 5):
            raise ValueError(f"remove_layer={remove_layer} is not a convolution behind the first: 2, 3, 4 or 5")
        pool_kernel = 3 if overlapping else 2
        side = pooled_side(img_size, pool_kernel)
        if side < 1:
            raise ValueError(
                f"img_size={img_size} leaves nothing to the last pooling; use {64 if overlapping else 36} or more"
            )
        if six_convolutions:
            num_kernels = (*num_kernels, num_kernels[-1])
        features: OrderedDict[str, nn.Module] = OrderedDict(pad=HangingWindow(LAYERS[1].kernel, LAYERS[1].stride))
        num_maps = 3
        for number, num_outputs in enumerate(num_kernels, start=1):
            layer = LAYERS[number]
            if number != remove_layer:
                num_outputs = num_towers * scaled(num_outputs / num_towers, width)
                groups = num_towers if layer.reads_own_tower_only else 1
                features[f"conv{number}"] = nn.Conv2d(
                    num_maps, num_outputs, layer.kernel, layer.stride, layer.padding, groups=groups
                )
                features[f"{activation}{number}"] = ACTIVATIONS[activation]()
                if lrn and layer.is_normalized:
                    features[f"norm{number}"] = LocalResponseNorm(num_towers, alpha_over_n=lrn_alpha_over_n)
                num_maps = num_outputs
            if layer.is_pooled:
                features[f"pool{number}"] = nn.MaxPool2d(pool_kernel, stride=2)
        self.features = nn.Sequential(features)
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(num_maps * side**2, hidden),
                act6=ACTIVATIONS[activation](),
                drop6=ScaledDropout(drop_rate),
                fc7=nn.Linear(hidden, hidden),
                act7=ACTIVATIONS[activation](),
                drop7=ScaledDropout(drop_rate),
                fc8=nn.Linear(hidden, num_classes),
            )
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Weights from N(0, 0.01^2); biases 1 in convolutions 2, 4, 5 and hidden layers, 0 elsewhere (section 5)."""
        for name, layer in (*self.features.named_children(), *self.classifier.named_children()):
            init_gaussian(layer, bias=1.0 if name in LAYERS_WITH_BIASES else 0.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class Figure1Net(nn.Module):
    """[N, 3, img_size, img_size] -> logits [N, K]: a four-layer network for CIFAR-10.

    Figure 1 says "a particular four-layer convolutional network" with ReLUs or tanh units and "no regularization of
    any kind", and no more: its layers, widths, initialization and learning rates are not known. This is the network
    of four weight layers among the examples of cuda-convnet (layers-18pct.cfg, read through a copy in Apache SINGA):
    32, 32 and 64 kernels of 5 x 5, each pooled 3 x 3 with stride 2 (maximum, then averages), a linear output, and
    weights from N(0, 0.0001^2), N(0, 0.01^2), N(0, 0.01^2), N(0, 0.01^2). There the first ReLU follows its pooling,
    which changes nothing, as both are monotone. `lrn=True` adds that file's normalizations (n = 3, alpha 5e-5 / 3,
    beta 0.75, k = 1), which Figure 1 does not mention. `init_std` draws every layer from that normal distribution
    instead: behind tanh units 0.0001 learns only slowly at first.
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
        for number, num_outputs in enumerate((32, 32, 64), start=1):
            pool = nn.MaxPool2d if number == 1 else nn.AvgPool2d
            layers[f"conv{number}"] = nn.Conv2d(num_maps, num_outputs, 5, padding=2)
            layers[f"{activation}{number}"] = ACTIVATIONS[activation]()
            layers[f"pool{number}"] = pool(3, stride=2, ceil_mode=True)  # a last window may hang over the edge
            if lrn and number < 3:
                layers[f"norm{number}"] = LocalResponseNorm(n=3, alpha=5e-5, k=1.0, alpha_over_n=True)
            num_maps, side = num_outputs, side // 2
        self.features = nn.Sequential(layers)
        self.fc4 = nn.Linear(num_maps * side**2, num_classes)
        for name, layer in (*self.features.named_children(), ("fc4", self.fc4)):
            init_gaussian(layer, std=init_std or (1e-4 if name == "conv1" else 0.01))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc4(self.features(images).flatten(1))


class HangingWindow(nn.Module):
    """Zeros on the right and bottom, so that the last window may hang over the edge as in cuda-convnet.

    The paper's images are 224 x 224, and (224 - 11) / 4 is no integer. The author's code takes
    1 + ceil((224 - 11) / 4) = 55 windows, of which the last reaches 3 pixels beyond the image, where it reads zeros
    (the mean, since that was subtracted). Three zero columns and rows give the same: the often quoted 227. Images of
    227 need none and get none.
    """

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, images: Tensor) -> Tensor:
        bottom, right = (-(side - self.kernel) % self.stride for side in images.shape[-2:])
        return nn.functional.pad(images, (0, right, 0, bottom))


class LocalResponseNorm(nn.Module):
    """b_i = a_i / (k + alpha sum_j a_j^2)^beta over the n maps j around i (section 3.3), of its tower: [N, C, H, W].

    The paper's formula does not divide alpha by n, and it is what we compute. The author's later code
    (cuda-convnet2, layer.py) divides the configured 0.0001 by the size 5, as do Caffe and torch.nn.LocalResponseNorm;
    which of the two the printed results used is not known. `alpha_over_n=True` is the code's.
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
        towers = maps.unflatten(1, (self.num_towers, -1)).flatten(0, 1)
        if maps.dtype in (torch.float16, torch.bfloat16):
            towers = towers.float()  # squares of activations above 255 overflow float16
        sums = WindowSum.apply(towers * towers, self.n // 2, (self.n - 1) // 2)
        normed = towers / sums.mul(self.alpha).add(self.k).pow(self.beta)
        return normed.to(maps.dtype).reshape(maps.shape)


class WindowSum(torch.autograd.Function):
    """Each map's sum with the `before` maps in front of it and the `after` behind it: [N, C, H, W] -> [N, C, H, W].

    torch's own response normalization averages by avg_pool3d, whose gradient on CUDA is added up in any order. Shifted
    slices are added in one order; the gradient is such a sum, too, so that neither pass keeps more than one tensor.
    """

    @staticmethod
    def forward(context: Any, maps: Tensor, before: int, after: int) -> Tensor:
        context.reach = (after, before)
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
    """The paper's dropout (section 4.2): units are kept unscaled in training and multiplied by 1 - rate in testing.

    torch's divides by 1 - rate in training instead: the same functions, but other gradients for the same weights.
    """

    def __init__(self, drop_rate: float):
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate={drop_rate} is not in [0, 1)")
        self.drop_rate = drop_rate

    def forward(self, activations: Tensor) -> Tensor:
        return nn.functional.dropout(activations, self.drop_rate, self.training) * (1 - self.drop_rate)


def scaled(number: float, width: float) -> int:
    """So many maps or units at this width: the nearest whole number, and never none."""
    return max(1, round(width * number))


def pooled_side(img_size: int, pool_kernel: int) -> int:
    """Side of the maps after the third pooling: 6 for 224."""
    side = 1 + -((LAYERS[1].kernel - img_size) // LAYERS[1].stride) if img_size >= LAYERS[1].kernel else 0
    for _ in range(3):
        side = (side - pool_kernel) // 2 + 1
    return side


def init_gaussian(layer: nn.Module, *, std: float = 0.01, bias: float = 0.0) -> None:
    """Weights of a convolution or linear layer from N(0, std^2), all its biases `bias`; other layers are left alone."""
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
    """Half as many kernels in one tower, but for the last convolution (section 3.2, footnote 2)."""
    return AlexNet(num_classes, num_kernels=(48, 128, 192, 192, 256), num_towers=1, **options)


@register
def alexnet_2012_figure1(num_classes: int = 10, **options) -> Figure1Net:
    """Four layers for CIFAR-10, ReLU or tanh."""
    return Figure1Net(num_classes, **options)

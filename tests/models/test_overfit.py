"""Every family learns: at reduced size it overfits 32 real patches; AlexNet and VGG-A begin to at full width.

Run alone: pytest tests/models/test_overfit.py. Optimizers, rates, widths and overrides were sought in trial runs; the
budgets are twice the steps of the slowest of seeds 0 to 4, rounded up, since rounding differs between processors. A
family that needs more than its budget has been broken.

The patches are cut from scikit-learn's two photographs, 16 from each, and carry 8 labels in turn, so that what is
learned is each patch. Dropout and drop-path are off. The accuracy is that of the training pass itself, with BatchNorm's
statistics of the batch: in networks so narrow, running variances (divided by n - 1 instead of n, with n as low as 32 in
every layer) would put a patch or two on the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.convmixer import ConvMixer
from torch import Tensor, nn

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.training.losses import with_auxiliary
from tencrop.training.optimizers import SGDAlexNet
from typed import present

NUM_IMAGES, NUM_LABELS = 32, 8


def he_for_relu(network: nn.Module) -> None:
    """In the place of AlexNet's and ZFNet's N(0, 0.01^2) and biases of 1, which need the paper's width and days."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(present(layer.bias))


def he_and_living_classes(network: nn.Module) -> None:
    """He's weights, and class maps that begin at 4: these end in a ReLU, and of 8 classes one is soon 0 for good."""
    he_for_relu(network)
    class_maps = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
    nn.init.constant_(present(class_maps.bias), 4.0)


class Case(NamedTuple):
    """A family's network at reduced size; without an override its own initialization."""

    name: str
    kwargs: dict[str, Any]
    side: int  # pixels
    optimizer: str  # sgd (momentum 0.9) | adamw (torch's defaults)
    lr: float
    max_steps: int
    override: Callable[[nn.Module], None] | None = None


SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}
CASES = [
    Case("lenet_1989", {}, 16, "adamw", 0.01, 570),
    Case("lenet5", {}, 32, "adamw", 0.003, 320),
    Case("lenet5_dense", {}, 32, "adamw", 0.005, 780),
    Case("alexnet_2012", {"width": 0.25, "img_size": 67}, 67, "sgd", 0.01, 120, he_for_relu),
    Case("zfnet", {"width": 0.25, "img_size": 64}, 64, "sgd", 0.01, 250, he_for_relu),
    Case("nin", {"width": 0.25}, 64, "adamw", 0.0005, 70, he_and_living_classes),
    Case("allcnn", {"width": 0.25}, 67, "adamw", 0.001, 80, he_and_living_classes),
    Case("vgg_a", {"width": 0.25, "img_size": 32}, 32, "adamw", 0.001, 240),
    Case("googlenet_2014", {"width": 0.25, "img_size": 80}, 80, "adamw", 0.001, 360),
    Case("bn_inception", {"width": 0.25}, 64, "sgd", 0.05, 60),
    Case("inception_v3", {}, 75, "adamw", 0.001, 30),
    Case("squeezenet_1_0", {"width": 0.5}, 67, "adamw", 0.001, 180, he_and_living_classes),
    Case("plain18", {"width": 0.25}, 32, "sgd", 0.05, 80),
    Case("resnet18_a", {"width": 0.25}, 32, "sgd", 0.05, 70),
    Case("resnet50_v1", {"width": 0.25}, 32, "sgd", 0.05, 100),
    Case("resnet152_stochastic_depth", {"width": 0.125}, 32, "sgd", 0.05, 130),
    Case("wide_resnet18_2", {"width": 0.5}, 32, "sgd", 0.05, 40),
    Case("fractalnet34", {"width": 0.0625}, 64, "sgd", 0.01, 110),
    Case("resnext50_8x14d", {"width": 0.25}, 32, "sgd", 0.05, 80),
    Case("densenet121", {"growth_rate": 8}, 32, "sgd", 0.05, 30),
    Case("mobilenet_v1_025", {}, 32, "sgd", 0.05, 120),
    Case("tf_efficientnet_b0", {}, 32, "adamw", 0.002, 40),
    Case("regnetx_002", {}, 32, "sgd", 0.05, 90),
    Case("regnety_002", {}, 32, "sgd", 0.05, 90),
    Case("vit_tiny_patch16_224", SMALL_VIT, 32, "adamw", 0.001, 240),
    Case("deit_tiny_distilled_patch16_224", SMALL_VIT, 32, "adamw", 0.001, 240),
    Case("swin_tiny_patch4_window7_224", SMALL_SWIN, 32, "adamw", 0.001, 230),
    Case("convmixer", {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}, 32, "adamw", 0.002, 40),
    Case("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)}, 32, "adamw", 0.001, 90),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reduced_network_overfits_a_batch(case, photographs, switch_off_drops):
    torch.manual_seed(0)
    network = switch_off_drops(build(case))
    if case.override is not None:
        case.override(network)
    images, labels = patches(photographs, case.side), torch.arange(NUM_IMAGES) % NUM_LABELS
    sgd = torch.optim.SGD(network.parameters(), lr=case.lr, momentum=0.9)
    optimizer = sgd if case.optimizer == "sgd" else torch.optim.AdamW(network.parameters(), lr=case.lr)
    num_right = []
    for _ in range(case.max_steps):
        _, logits = take_step(network, optimizer, images, labels)
        num_right.append(int((logits.argmax(1) == labels).sum()))
        if num_right[-1] == NUM_IMAGES:
            return
    pytest.fail(f"{num_right} of {NUM_IMAGES} right in {case.max_steps} steps")


class FullWidth(NamedTuple):
    """A network at full width and 224 pixels, with the paper's initialization."""

    kwargs: dict[str, Any]
    num_images: int  # each of a class of its own
    lr: float


# AlexNet's rate is the paper's for its batch of 128, divided for ours, as a batch of few classes would be thrown about
# by the whole. VGG's is the paper's undivided: its first logits are a thousandth, and 20 smaller steps show nothing.
FULL_WIDTH = {
    "alexnet_2012": FullWidth({}, num_images=8, lr=0.01 * 8 / 128),
    "vgg_a": FullWidth({"init": "normal"}, num_images=2, lr=0.01),
}


@pytest.mark.parametrize("name", FULL_WIDTH)
def test_twenty_steps_at_full_width_are_finite_and_decreasing(name, photographs):
    """On one batch, dropout and all. Decreasing means: no loss is above the first, and of the four means over five
    steps each is below the one before."""
    torch.manual_seed(0)
    kwargs, num_images, lr = FULL_WIDTH[name]
    network = timm.create_model(name, **kwargs)
    images = 58 * patches(photographs, 224, num=num_images)  # the deviation of pixels of [0, 255]
    labels = torch.arange(num_images) * (1000 // num_images)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": biases, "weight_decay": 0.0}]
    optimizer = SGDAlexNet(groups, lr=lr, momentum=0.9)
    losses = [take_step(network, optimizer, images, labels)[0] for _ in range(20)]
    assert np.isfinite(losses).all(), losses
    assert max(losses) == losses[0], losses
    means = np.mean(np.reshape(losses, (4, 5)), axis=1)
    assert (np.diff(means) < 0).all(), losses


def build(case: Case) -> nn.Module:
    if case.name == "convmixer":  # timm's names of it fix dimension and depth
        return ConvMixer(num_classes=NUM_LABELS, **case.kwargs)
    num_classes = 10 if case.name == "lenet5" else NUM_LABELS
    return timm.create_model(case.name, num_classes=num_classes, **case.kwargs)


def patches(photographs: dict[str, Image.Image], side: int, *, num: int = NUM_IMAGES) -> Tensor:
    """Of 2 x 16 patches of 106 x 106 pixels evenly `num`, resized: [num, 3, side, side], each channel standardized."""
    boxes = [(160 * column, 106 * row, 160 * column + 106, 106 * row + 106) for row in range(4) for column in range(4)]
    cut = [photographs[name].resize((side, side), box=box) for name in ("china", "flower") for box in boxes]
    pixels = np.stack([np.asarray(patch) for patch in cut[:: NUM_IMAGES // num]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)


def take_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """The loss and the class scores [N, K] before the step."""
    outputs = network.train()(images)
    logits, *auxiliary = [outputs] if isinstance(outputs, Tensor) else outputs
    loss = with_auxiliary(
        F.cross_entropy(logits, labels),
        *(F.cross_entropy(others, labels) for others in auxiliary),
        weight=getattr(network, "auxiliary_weight", 0.0),
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), logits

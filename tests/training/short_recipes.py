"""Shorten a recipe to the budget of tests/training/test_recipes_learn.py, and reduce what small_recipes.py leaves.

What a short run needs changes with it: the epochs of the schedule in proportion, BatchNorm's momentum to torch's own;
moving averages of the weights are left out; a plateau schedule keeps its first lr. Weights drawn with one standard
deviation for all layers (NIN, ZFNet) are divided by the square root of the width, which keeps the signal's size. The
biases of class maps with a ReLU (NIN, All-CNN, SqueezeNet) start at 4, as in tests/models/test_overfit.py: of ten maps
all were soon 0 for good (NIN, after 195 steps), while the thousand of the full network stay alive. small_recipes.py
reduces the rest. Inception v3's recipe trains BN-Inception, since its own network has no width.

Two recipes missed both budgets (plain ViT with 78.8%, Inception v3 with 70.0%). Then their reduction was changed, and
they get both budgets again:

- TensorFlow's RandAugment (plain ViT) moves an image by up to 100 pixels and cuts out up to 80 x 80, whatever the size
  of the image: of 32 x 32 pixels nothing was left. Now both are in proportion to the 224 pixels of the recipe.
- Inception v3's lr was divided by the square root of the batch's reduction, 7. Its 1,600 images are 50 replicas of 32,
  and the paper does not say that they update together (the recipe's guess). Now the batch of 32 is that of one replica,
  which has lr 0.045, as in BN-Inception's recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import Config
from tencrop.data.augmentation.operations import Operation
from tencrop.data.sampling.rng import Float64
from tencrop.training.classifier import Classifier
from typed import present

BASE_PASSES, BATCH = 20, 32
NUM_IMAGENET = 1_281_167
# Beyond small_recipes.py. The mean image has 256 pixels, so smaller images subtract the mean color.
SMALL_IMAGES = (
    "normalization.mean=dataset image_size={0} augmentation.size={0} short_side={1} augmentation.side=[{1},{1}] "
)
SMALLER = {
    "alexnet_2012": SMALL_IMAGES.format(96, 110) + "++model.kwargs.img_size=96 "
    "++model.kwargs.width=1.0 ++model.kwargs.init_std=0.01",
    "inception_v3": "model=bn_inception ++model.kwargs.width=0.125 image_size=64 short_side=73 augmentation.size=64 "
    "optimizer.lr=0.045",
    "zfnet": SMALL_IMAGES.format(64, 73) + "++model.kwargs.img_size=64",
}
# timm's names fix these arguments of its constructors
SMALLER_THAN_TIMMS_NAMES: dict[str, dict[str, object]] = {
    "timm.models.convmixer._create_convmixer": {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4},
    "timm.models.efficientnet._gen_efficientnet": {"channel_multiplier": 0.25},
}
# By model.name
ONE_STD = ("nin", "zfnet")  # weights of one standard deviation at any width
IN_PIXELS = (Operation.TRANSLATE_X, Operation.TRANSLATE_Y, Operation.CUTOUT)
CLASS_MAPS = ("allcnn", "nin", "squeezenet_1_0")  # a ReLU follows the last layer


def with_kwargs(constructor: Callable[..., nn.Module], ours: dict[str, object]) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: constructor(*args, **{**kwargs, **ours})


def in_proportion(values_of: Callable[..., dict[Operation, Float64]]) -> Callable[..., dict[Operation, Float64]]:
    """`tf_values`, whose translations and cutouts are in pixels of an image of 224, with those of a smaller image."""

    def scaled(level: Float64, signs: Float64, *, size: int) -> dict[Operation, Float64]:
        values = values_of(level, signs, size=size)
        return {**values, **{kind: np.trunc(values[kind] * size / 224) for kind in IN_PIXELS}}

    return scaled


def passes_of(recipe: Config, network: nn.Module) -> int:
    """The budget of a recipe: see the docstring of test_recipes_learn.py."""
    mixing = recipe.augmentation.mixing
    longer = max(1.0, epochs_of(recipe) / 90)
    mixed = 2 if mixing.mixup_alpha or mixing.cutmix_alpha else 1
    is_normalized = any(isinstance(layer, _BatchNorm | nn.LayerNorm) for layer in network.modules())
    has_lower_lr = recipe.optimizer.name in ("sgd", "sgd_alexnet") and not is_normalized
    return round(BASE_PASSES * longer * mixed * (recipe.training.global_batch / BATCH if has_lower_lr else 1))


def epochs_of(recipe: Config) -> float:
    training = recipe.training
    return training.epochs or training.steps * training.global_batch / NUM_IMAGENET  # type: ignore[operator]


def shortened(recipe: Config, passes: int) -> list[str]:
    """Words for train.py that give the recipe's schedule that many epochs."""
    schedule, scale = recipe.schedule, passes / epochs_of(recipe)
    words = [
        f"training.epochs={passes}",
        "training.steps=null",
        "training.ema_decay=null",
        "training.ema_warmup=none",
        "model.bn_momentum=null",
    ]
    if recipe.training.precise_bn:
        words.append("training.precise_bn=480")
    if schedule.name == "plateau":  # validated once, at the end: lr would not drop
        words += ["schedule.name=constant", "schedule.gamma=null", "schedule.patience=null", "schedule.max_drops=null"]
        words.append("training.minival_fraction=0")

    def scaled(value: float) -> float:
        return round(value * scale) if schedule.unit == "epoch" else value * scale  # whole epochs, as train.py demands

    words.append(f"schedule.warmup_epochs={scaled(schedule.warmup_epochs)}")
    if schedule.decay_epochs is not None:
        words.append(f"schedule.decay_epochs={schedule.decay_epochs * scale}")
    if schedule.milestones is not None:
        words.append(f"schedule.milestones={[scaled(value) for value in schedule.milestones]}".replace(" ", ""))
    if schedule.knots is not None:
        words.append(f"schedule.knots={[value * scale for value in schedule.knots]}".replace(" ", ""))
    return words


@torch.no_grad()
def keep_signal(classifier: Classifier) -> None:
    """Adapt the initial weights to a narrow network of ten classes: see the docstring of this module."""
    model = classifier.config.model
    _, *layers = (layer for layer in classifier.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    if model.name in ONE_STD:
        for layer in layers:
            layer.weight.div_(model.kwargs["width"] ** 0.5)
    if model.name in CLASS_MAPS:
        nn.init.constant_(present(layers[-1].bias), 4.0)

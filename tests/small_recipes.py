"""Reduces a recipe to a size at which tests can train it: a narrow network, small images, a small batch.

The learning rate follows the batch: in proportion for SGD, with the square root for RMSProp and LAMB. AdamW keeps its
own, because narrower networks bear a higher one. All else is the recipe's own: optimizer, schedule, augmentation, loss,
precision and protocol.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from tencrop.config import Config

# Side of the images and arguments of the network, by the beginning of model.name. AlexNet and ZFNet keep their side, as
# their mean image has 256 pixels. init_std is that of alexnet_tiny10: at 0.01 a narrow AlexNet's signal fades away.
# Inception v3 has one training size because of its auxiliary head, and no width.
SIZES: dict[str, tuple[int, dict[str, object]]] = {
    "alexnet_2012_figure1": (32, {}),
    "alexnet_2012": (224, {"width": 0.25, "init_std": 0.04}),
    "allcnn": (64, {"width": 0.25}),
    "bn_inception": (64, {"width": 0.125}),
    "convmixer": (28, {}),
    "convnext": (32, {"depths": [1, 1, 1, 1], "dims": [16, 32, 64, 128]}),
    "deit|vit": (32, {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2}),
    "densenet": (32, {"growth_rate": 8, "block_config": [2, 2, 2, 2]}),
    "fractalnet": (64, {"width": 0.0625, "num_columns": 2}),
    "googlenet": (80, {"img_size": 80, "width": 0.25}),
    "inception_v3": (299, {}),
    "lenet": (32, {}),
    "mobilenet_v1": (32, {"width": 0.25}),
    "nin": (64, {"width": 0.25}),
    "plain|resnext|resnet.*_|wide_resnet": (32, {"width": 0.125}),
    "resnet": (32, {"channels": [8, 16, 32, 64]}),
    "squeezenet": (64, {"width": 0.25}),
    "swin": (
        32,
        {"img_size": 32, "embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2},
    ),
    "tf_efficientnet|regnet": (32, {}),
    "vgg": (32, {"img_size": 32, "width": 0.25}),
    "zfnet": (224, {"width": 0.25}),
}


def small_recipe(composed: Callable[..., Config], recipe: str, *, batch: int) -> list[str]:
    """The words for train.py that reduce `recipe` ("experiment=NAME"): batches and groups of `batch` images."""
    config = composed(recipe)
    side, kwargs = next(found for pattern, found in SIZES.items() if re.match(pattern, config.model.name))
    # Crops that grow start at half the size. At 16 pixels a ResNet's last stride meets maps of 1 x 1, where torch 2.15
    # gives other bfloat16 weight gradients in each run on a CPU, some of them NaN.
    is_progressive = config.augmentation.progressive.start_size is not None
    size = min(2 * side if is_progressive else side, config.image_size)
    scale = size / config.image_size
    words = [recipe, f"image_size={size}", f"augmentation.size={_scaled(config.augmentation.size, scale)}"]
    words += [f"training.global_batch={batch}", "data.num_classes=null"]
    words += [f"++model.kwargs.{key}={_listed(value)}" for key, value in kwargs.items()]
    words += ["hardware=cpu", "hardware.workers=1", "tracker=none", *_learning_rates(config, batch)]
    if config.short_side is not None:
        words.append(f"short_side={_scaled(config.short_side, scale)}")
    if config.augmentation.side is not None:
        words.append(f"augmentation.side={_listed([_scaled(side, scale) for side in config.augmentation.side])}")
    if config.protocol.side is not None:
        sides = [_scaled(side, scale) for side in config.protocol.sides if side is not None]
        words.append(f"protocol.side={_listed(sides) if isinstance(config.protocol.side, list) else sides[0]}")
    if config.training.init.checkpoint is not None:  # the weights of a network of full size
        words.append("training.init={checkpoint:null,only:[],head:keep,resize:false}")
    if is_progressive:
        words += [f"augmentation.progressive.start_size={size // 2}", f"augmentation.progressive.multiple={size // 4}"]
    groups = {
        "model.bn_group": config.model.bn_group,
        "augmentation.mixing.mix_group": config.augmentation.mixing.mix_group,
        "training.precise_bn": config.training.precise_bn,
    }
    return words + [f"{key}={batch}" for key, value in groups.items() if value is not None]


def _learning_rates(config: Config, batch: int) -> list[str]:
    share = batch / config.training.global_batch
    scale = {"adamw": 1.0, "rmsprop_tf": math.sqrt(share), "lamb": math.sqrt(share)}.get(config.optimizer.name, share)
    rates = {
        "optimizer.lr": config.optimizer.lr,
        "schedule.warmup_from": config.schedule.warmup_from,
        "schedule.min_lr": config.schedule.min_lr,
    }
    return [f"{key}={rate * scale}" for key, rate in rates.items() if rate is not None]


def _scaled(side: int, scale: float) -> int:
    return round(side * scale)


def _listed(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, Sequence) else str(value)

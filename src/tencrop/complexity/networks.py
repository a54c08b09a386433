"""Count the networks of conf/model, built on the meta device: shapes without weights."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import timm
import torch
from omegaconf import OmegaConf
from timm.models import model_entrypoint

from tencrop.cli.choices import CONF
from tencrop.complexity.count import Complexity, count
from tencrop.config import Model, UserError
from tencrop.config.yaml_files import yaml_files, yaml_mapping
from tencrop.models.factory import create_network


def complexity_of(model: Model, image_size: int, num_classes: int | None = None) -> Complexity:
    """Count a network in eval mode for images of image_size x image_size pixels.

    num_classes: None takes the network's default. Raises UserError if the network cannot be built or does not take such
    images.
    """
    # on the meta device, ViT-H or VGG need no memory and no time for the initialization of weights
    with torch.device("meta"):
        network = create_network(model, num_classes=num_classes or own_classes(model.name))
    try:
        return count(network, image_size)
    except (RuntimeError, AssertionError, ValueError) as error:  # from the first layer that the size does not fit
        raise UserError(
            f"image_size={image_size}: {model.name} does not take images of {image_size} x {image_size} pixels"
            f" ({error}); choose its own size, or give one with +model.kwargs.img_size if it has that argument"
        ) from error


def own_classes(name: str) -> int:
    """Default number of classes of a network: 10 for LeNet, 1000 for most."""
    if not timm.is_model(name):
        return 1000
    # timm's entry points take **kwargs; only ours name num_classes
    default = inspect.signature(model_entrypoint(name)).parameters.get("num_classes")
    return default.default if default is not None else 1000


def model_files() -> list[str]:
    """Names of the files of conf/model, except timm.yaml, which leaves the network to the user."""
    return sorted(path.stem for path in yaml_files(CONF / "model") if path.stem != "timm")


@cache  # published tables have many rows for the same network
def complexity_of_file(name: str, image_size: int | None = None, **kwargs: Any) -> Complexity:
    """Count the network of a file of conf/model; the default image size is the file's; `kwargs` extend its own."""
    model, own_size = model_file(name)
    return complexity_of(replace(model, kwargs=model.kwargs | kwargs), image_size or own_size)


@cache
def model_file(name: str) -> tuple[Model, int]:
    """Read the network from a file of conf/model, and the image size that train.py uses for it."""
    path = CONF / "model" / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"model={name}: there is no {path.relative_to(CONF.parent)}")
    content: Any = OmegaConf.to_container(yaml_mapping(path))
    default: Any = yaml_mapping(CONF / "train.yaml")
    # a file with "# @package _global_" sets other keys, such as image_size, and has its network under "model"
    model = content.get("model", content)
    return Model(**model), content.get("image_size", default.image_size)

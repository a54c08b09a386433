"""Networks as conf/model names them, of shapes alone. Called by __main__.py, golden.py and published.py."""

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
    """The complexity of a network in evaluation, for images of image_size x image_size pixels.

    num_classes: None for as many as the network has by itself. Raises UserError for what cannot be built, or does not
    take such images.
    """
    with torch.device("meta"):
        network = create_network(model, num_classes=num_classes or own_classes(model.name))
    try:
        return count(network, image_size)
    except (RuntimeError, AssertionError, ValueError) as error:  # whatever the first layer that does not fit says
        raise UserError(
            f"image_size={image_size}: {model.name} does not take images of {image_size} x {image_size} pixels"
            f" ({error}); choose its own size, or give one with +model.kwargs.img_size where it has that argument"
        ) from error


def own_classes(name: str) -> int:
    """Classes of a network that nobody chose them for: 10 for LeNet, 1000 for most."""
    if not timm.is_model(name):
        return 1000
    default = inspect.signature(model_entrypoint(name)).parameters.get("num_classes")
    return default.default if default is not None else 1000


def model_files() -> list[str]:
    """The networks of conf/model, but for the file that names none."""
    return sorted(path.stem for path in yaml_files(CONF / "model") if path.stem != "timm")


@cache
def complexity_of_file(name: str, image_size: int | None = None, **kwargs: Any) -> Complexity:
    """The complexity of a file of conf/model, at its own image size where none is given, `kwargs` beside its own."""
    model, own_size = model_file(name)
    return complexity_of(replace(model, kwargs=model.kwargs | kwargs), image_size or own_size)


@cache
def model_file(name: str) -> tuple[Model, int]:
    """What a file of conf/model says: the network, and the image size that train.py would show it."""
    path = CONF / "model" / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"model={name}: there is no {path.relative_to(CONF.parent)}")
    said: Any = OmegaConf.to_container(yaml_mapping(path))
    default: Any = yaml_mapping(CONF / "train.yaml")
    model = said.get("model", said)  # with or without "@package _global_"
    return Model(**model), said.get("image_size", default.image_size)

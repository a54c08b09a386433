"""Look up the preprocessing of published weights: timm's pretrained_cfg and torchvision's weight metadata.

Weights evaluated with another mean, crop or filter than they were trained for lose accuracy without any error message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torchvision
from timm.data import resolve_data_config
from torch import nn

from tencrop.config import Config, Model
from tencrop.config.protocol_rules import check_mean_image, check_protocol
from tencrop.data.augmentation.mean_image import USE
from tencrop.evaluation.preprocessing import Preprocessing, apply_preprocessing, typed_fields
from tencrop.evaluation.targets import EvaluationTarget
from tencrop.models.published_files import timm_entry, torchvision_entry
from tencrop.models.weights import Weights, torchvision_name


def with_preprocessing(target: EvaluationTarget, network: nn.Module, weights: Weights) -> tuple[Config, str]:
    """The target's configuration with the preprocessing of its weights, and the source of that preprocessing.

    Values on the command line win. Raises UserError if the resulting protocol is impossible: for example, if the
    command line sets a side that is smaller than the publisher's crop.
    """
    config, typed = target.config, target.typed
    if not target.is_published:
        return config, "the configuration"
    if weights.preprocessing:
        wanted = _of_export(weights.preprocessing)
    elif weights.metadata:  # one of our checkpoints, outside its run folder
        wanted = _of_checkpoint(config, weights.metadata)
    else:
        wanted = published(config.model, network, weights, target.path)
    if wanted is None:
        return config, f"the configuration; no published weights of {config.model.name} are known"
    config = apply_preprocessing(config, wanted, typed)
    check_protocol(config.protocol)
    check_mean_image(config.protocol, config.normalization)
    kept = sorted(typed_fields(typed))
    return config, wanted.source + (f"; typed: {', '.join(kept)}" if kept else "")


def _of_export(written: Mapping[str, Any]) -> Preprocessing | None:
    size, side = written["size"], written["side"]
    # If the command line sets another size, the ratio of crop to side stays the same.
    return Preprocessing(
        written["source"],
        written["mean_image"]["use"] if "mean_image" in written else written["mean"],
        written["std"],
        written["filter"],
        size,
        lambda new_size: side and math.floor(new_size * Fraction(side, size)),
    )


def _of_checkpoint(config: Config, metadata: Mapping[str, Any]) -> Preprocessing | None:
    source, filter = "the checkpoint's mean and std, else the configuration", config.augmentation.filter
    # earlier checkpoints do not say how their mean image is used: there was one way
    mean: Any = metadata.get(USE, "image") if "mean_image" in metadata else metadata["mean"]
    return Preprocessing(source, mean, metadata["std"], filter, size=None, side=lambda _: None)


def published(model: Model, network: nn.Module, weights: Weights, file: Path) -> Preprocessing | None:
    """The preprocessing of timm's or torchvision's weights in `file`; None for weights of our own networks.

    `source` says so if the file's name is not known, and the entry is only the default of several.
    """
    if model.name.startswith("torchvision/"):
        name: str | None = model.name.removeprefix("torchvision/")
    else:
        name = torchvision_name(weights.state, network.state_dict(), name=model.name)
    if name is not None:
        entry = torchvision_entry(name, file)
        return _of_torchvision(*entry, network) if entry else None
    entry = timm_entry(model, network, file)
    return _of_timm(*entry, model.kwargs.get("img_size")) if entry else None


def _of_timm(cfg: dict[str, Any], is_guess: bool, img_size: int | None) -> Preprocessing:
    """As in timm's validate.py: with the size and crop for testing, where a network has its own.

    img_size: the input size that the network was built for, if model.kwargs set it.
    """
    found = resolve_data_config(pretrained_cfg=cfg, use_test_size=True)
    source = _source("timm", ".".join(part for part in (cfg.get("architecture"), cfg.get("tag")) if part), is_guess)
    if found["crop_mode"] != "center":
        # "border" and "squash" resize in another way, which we do not implement; the result says so.
        source += f", whose crop_mode {found['crop_mode']} is not supported here"
    _, height, width = found["input_size"]
    return Preprocessing(
        source=source,
        mean=_on_255(found["mean"]),
        std=_on_255(found["std"]),
        filter=found["interpolation"],
        # Our crops are squares. For the few networks with another shape the configuration's size is kept.
        size=img_size or (height if height == width else None),
        side=lambda size: math.floor(size / found["crop_pct"]),  # floor, as timm.data.create_transform
    )


def _of_torchvision(weights: torchvision.models.WeightsEnum, is_guess: bool, network: nn.Module) -> Preprocessing:
    preset = weights.transforms()
    mean, std = _on_255(preset.mean), _on_255(preset.std)
    if getattr(network, "transform_input", None) is False:
        # GoogLeNet and Inception v3 were trained on images normalized by 0.5 and 0.5. Built together with its weights,
        # torchvision's network converts ImageNet's normalization to that by itself (transform_input=True). We build it
        # without weights, so it does not.
        mean = std = [127.5] * 3
    (size,), (side,) = preset.crop_size, preset.resize_size
    # The same ratio of crop to side at other sizes; a Fraction, because in floats floor(100 / (100 / 127)) is 126.
    crop = Fraction(size, side)
    filter = preset.interpolation.value
    source = _source("torchvision", str(weights), is_guess)
    return Preprocessing(source, mean, std, filter, size, lambda size: math.floor(size / crop))


def _source(publisher: str, entry: str, is_guess: bool) -> str:
    return f"{publisher}'s default, {entry}" if is_guess else f"{publisher}'s {entry}"


def _on_255(values: tuple[float, ...]) -> list[float]:
    # Rounded, so that the last bits of 255 * value neither appear in print nor make a preprocessing look different.
    return [round(255 * value, 9) for value in values]

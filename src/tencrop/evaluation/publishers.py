"""How the publisher of a network's weights prepares images for them: timm's pretrained_cfg, torchvision's metadata.

Called by evaluate.py and by visualization/trained_model.py, once the network is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torchvision
from timm.data import resolve_data_config
from torch import nn

from tencrop.config import Config
from tencrop.config.rules import check_protocol
from tencrop.evaluation.preprocessing import Preprocessing, prepared_as, typed_of
from tencrop.evaluation.targets import EvaluationTarget


def with_preprocessing(member: EvaluationTarget, network: nn.Module, facts: Mapping[str, Any]) -> tuple[Config, str]:
    """The member's configuration with what its weights want of images, and who says so.

    facts: what a checkpoint of ours says of itself. Raises UserError where the protocol that this gives is none, such
    as a typed side below the publisher's size.
    """
    config, typed = member.config, member.typed
    if typed is None:
        return config, "the configuration"
    if facts:  # a checkpoint of ours outside its run folder
        wanted = _of_checkpoint(config, facts)
    else:
        wanted = published(config.model.name, network, config.model.kwargs.get("img_size"))
    if wanted is None:
        return config, f"the configuration; nobody published weights of {config.model.name}"
    config = prepared_as(config, wanted, typed)
    check_protocol(config.protocol)
    kept = sorted(typed_of(typed))
    return config, wanted.source + (f"; typed: {', '.join(kept)}" if kept else "")


def _of_checkpoint(config: Config, facts: Mapping[str, Any]) -> Preprocessing | None:
    source, filter = "the checkpoint's mean and std, else the configuration", config.augmentation.filter
    return Preprocessing(source, facts["mean"], facts["std"], filter, size=None, side=lambda _: None)


def published(name: str, network: nn.Module, img_size: int | None = None) -> Preprocessing | None:
    """What timm or torchvision say of their weights for the network; None for one of ours.

    img_size: that the network was built for, where its arguments say so.
    """
    if name.startswith("torchvision/"):
        return _of_torchvision(name.removeprefix("torchvision/"), network)
    cfg = getattr(network, "pretrained_cfg", None)
    return _of_timm(cfg, img_size) if cfg else None


def _of_timm(cfg: dict[str, Any], img_size: int | None) -> Preprocessing:
    """As timm's validate.py has it: at the size, and with the crop, that a network is tested with."""
    found = resolve_data_config(pretrained_cfg=cfg, use_test_size=True)
    source = "timm's " + ".".join(part for part in (cfg.get("architecture"), cfg.get("tag")) if part)
    if found["crop_mode"] != "center":
        source += f", whose crop_mode {found['crop_mode']} is not ours"
    _, height, width = found["input_size"]
    return Preprocessing(
        source=source,
        mean=_on_255(found["mean"]),
        std=_on_255(found["std"]),
        filter=found["interpolation"],
        size=img_size or (height if height == width else None),
        side=lambda size: math.floor(size / found["crop_pct"]),  # timm.data.create_transform's arithmetic
    )


def _of_torchvision(name: str, network: nn.Module) -> Preprocessing | None:
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
    if weights is None:
        return None
    preset = weights.transforms()
    mean, std = _on_255(preset.mean), _on_255(preset.std)
    if getattr(network, "transform_input", None) is False:
        # GoogLeNet and Inception v3 turn ImageNet's normalization into 0.5 and 0.5 themselves where torchvision builds
        # them for these weights, and not where it builds them without any, as here
        mean = std = [127.5] * 3
    (size,), (side,) = preset.crop_size, preset.resize_size
    crop = Fraction(size, side)
    filter = preset.interpolation.value
    return Preprocessing(f"torchvision's {weights}", mean, std, filter, size, lambda size: math.floor(size / crop))


def _on_255(values: tuple[float, ...]) -> list[float]:
    return [round(255 * value, 9) for value in values]

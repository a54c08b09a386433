"""How images must be prepared for an exported network, in our terms and in those of timm's config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from tencrop.config import Config
from tencrop.config.schema import MEAN_IMAGES, Model
from tencrop.data.augmentation.color import mean_and_std
from tencrop.data.augmentation.mean_image import array_sha256


def preprocessing_of_run(config: Config, metadata: dict[str, Any], source: str) -> dict[str, Any]:
    """The content of weights.PREPROCESSING_SHAPE for a run, as it evaluates its own network.

    Sizes and filter are those of the run's test protocol; of several sides, the recipe's. metadata: the checkpoint's.
    """
    protocol, use = config.protocol, config.normalization.mean
    mean, std = mean_and_std(config.normalization, metadata)
    is_image = use in MEAN_IMAGES
    return {
        "source": source,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "filter": protocol.filter,
        "size": protocol.size,
        # Of several sides, as in VGG's multi-scale test, no single one is the right one for timm's single crop.
        "side": config.short_side if isinstance(protocol.side, list) else protocol.side,
        **({"mean_image": {"use": use, "sha256": array_sha256(metadata["mean_image"])}} if is_image else {}),
    }


def is_timms(network: nn.Module, model: Model) -> bool:
    """Whether timm alone builds the network from its name and arguments: ours have no pretrained_cfg."""
    # timm neither blurs nor takes BatchNorm's epsilon for every network: it would load the weights and predict others.
    return bool(getattr(network, "pretrained_cfg", None)) and not model.blur_pool and model.bn_eps is None


def timm_config(network: nn.Module, config: Config, classes: Sequence[str], written: Mapping[str, Any]) -> str:
    """The config.json that timm and the Hub read beside model.safetensors. written: `preprocessing_of_run`."""
    size, side = written["size"], written["side"]
    own = cast(dict[str, Any], network.pretrained_cfg)
    content: dict[str, Any] = {
        "architecture": config.model.name,
        "num_classes": len(classes),
        "num_features": network.num_features,
        "label_names": list(classes),
        "model_args": config.model.kwargs,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": own.get("fixed_input_size", False),
            "interpolation": written["filter"],
            "crop_pct": crop_fraction(size, side),
            # timm's names: squash stretches both sides to the size, center rescales the shorter side and crops.
            "crop_mode": "squash" if config.protocol.resize == "warp" else "center",
            # timm normalizes pixels on [0, 1], tencrop on [0, 255].
            "mean": [value / 255 for value in written["mean"]],
            "std": [value / 255 for value in written["std"]],
            "num_classes": len(classes),
            "pool_size": None,
            **{key: own[key] for key in ("first_conv", "classifier") if key in own},
        },
    }
    return json.dumps(content, indent=2) + "\n"


def crop_fraction(size: int, side: int | None) -> float:
    """timm's crop_pct with which timm rescales to `side`: it computes floor(size / crop_pct). 1 if side is None."""
    if side is None:
        return 1.0
    fraction = size / side
    while math.floor(size / fraction) < side:  # in floats, floor(32 / (32 / 36)) may be 35
        fraction = math.nextafter(fraction, 0)
    return fraction

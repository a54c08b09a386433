"""Which of timm's or torchvision's published weights a file holds, recognized by its name.

Many networks have several published files, whose sizes, filters, crops and means differ. evaluation/publishers.py and
training/distillation.py take the preprocessing from the entry that is found here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from tencrop.config.schema import Model


def timm_entry(model: Model, network: nn.Module, file: Path) -> tuple[dict[str, Any], bool] | None:
    """timm's pretrained_cfg for a file of weights, and whether it is only the network's default of several.

    A file is known under its download name (`resnet50-0676ba61.pth`) and as NETWORK.TAG; the suffix does not matter.
    model.kwargs.pretrained_cfg takes precedence. None for our own networks: timm registers them without weights.
    """
    default = getattr(network, "pretrained_cfg", None)
    if not default:
        return None
    if "pretrained_cfg" in model.kwargs:
        return default, False
    names = timm.list_pretrained(f"{default['architecture']}.*")
    for name in names:
        cfg = timm.models.get_pretrained_cfg(name)
        assert cfg is not None  # it is listed
        if file.stem in (name, Path(str(cfg.url or "")).stem):
            return cfg.to_dict(), False
    return default, len(names) > 1


def torchvision_entry(name: str, file: Path) -> tuple[torchvision.models.WeightsEnum, bool] | None:
    """torchvision's weights in a file for its network `name`, and whether they are only the default of several.

    A file is known under its download name; the suffix does not matter. None if torchvision has published no weights of
    the network.
    """
    published = list(torchvision.models.get_model_weights(name))
    for weights in published:
        if file.stem == Path(weights.url).stem:
            return weights, False
    return (torchvision.models.get_model_weights(name).DEFAULT, len(published) > 1) if published else None

"""Puts our networks into timm's registry, so that timm.create_model builds them like its own."""

from __future__ import annotations

import functools
from collections.abc import Callable

from timm.models import register_model
from torch import nn

DOWNLOAD_OPTIONS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: registers `build` under its own name. timm's options for downloaded weights, of which
    there are none, are dropped; any other argument reaches `build`, which refuses what it does not know."""

    @functools.wraps(build)
    def entry_point(*args, **kwargs):
        return build(*args, **{key: value for key, value in kwargs.items() if key not in DOWNLOAD_OPTIONS})

    register_model(entry_point)
    return build

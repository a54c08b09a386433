"""Decorator that registers our networks with timm, so that timm.create_model builds them by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from timm.models import register_model
from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

# timm.create_model passes these to every entry point, whether the user set them or not
DOWNLOAD_OPTIONS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register(build: Builder) -> Builder:
    """Register `build` with timm under its function name.

    timm's options for downloaded weights are dropped, since we publish none. All other arguments reach `build`, which
    raises TypeError for unknown ones.
    """

    # timm reads name and module of the entry point, which wraps() copies from `build`
    @functools.wraps(build)
    def entry_point(*args, **kwargs):
        return build(*args, **{key: value for key, value in kwargs.items() if key not in DOWNLOAD_OPTIONS})

    register_model(entry_point)
    return build  # not the wrapper: a direct call with pretrained=True must fail

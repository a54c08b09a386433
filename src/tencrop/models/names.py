"""Prints all model names for the committed list config/model_names.txt: `python -m tencrop.models.names`.

The list lets a misspelled name be answered before timm is imported, which takes seconds.
"""

from __future__ import annotations

from signal import SIGINT

import timm
import torchvision

import tencrop.models.factory  # noqa: F401  registers our names
from tencrop.signals import exit_at_once


def installed_names() -> list[str]:
    """What timm, torchvision (as torchvision/NAME) and our own modules offer, sorted."""
    classifiers = torchvision.models.list_models(module=torchvision.models)
    return sorted({*timm.list_models(), *(f"torchvision/{name}" for name in classifiers)})


if __name__ == "__main__":
    exit_at_once(SIGINT)
    print("\n".join(installed_names()))

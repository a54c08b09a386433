"""Print all model names for the committed list config/model_names.txt: `python -m tencrop.models.names`.

The list allows a misspelled name to be rejected before timm is imported, which takes seconds.
"""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import timm
import torchvision

import tencrop.models.factory  # noqa: F401  registers our names


def installed_names() -> list[str]:
    """List the models of timm (which include ours) and torchvision (as torchvision/NAME), sorted."""
    # module= excludes detection, segmentation and video models
    classifiers = torchvision.models.list_models(module=torchvision.models)
    return sorted({*timm.list_models(), *(f"torchvision/{name}" for name in classifiers)})


if __name__ == "__main__":
    print("\n".join(installed_names()))

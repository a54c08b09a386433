"""All model names, kept in names.txt so that a misspelt one is answered before timm is imported.

`python -m tencrop.models.names` prints the list of the installed timm and torchvision.
"""

from __future__ import annotations

from pathlib import Path

NAMES_FILE = Path(__file__).with_name("names.txt")


def known_names() -> list[str]:
    """The committed list."""
    return NAMES_FILE.read_text().split()


def installed_names() -> list[str]:
    """What the installed libraries and our own modules offer, sorted."""
    import timm
    import torchvision

    import tencrop.models.factory  # noqa: F401  registers our names

    classifiers = torchvision.models.list_models(module=torchvision.models)
    return sorted({*timm.list_models(), *(f"torchvision/{name}" for name in classifiers)})


if __name__ == "__main__":
    print("\n".join(installed_names()))

"""Finds the experiment that is a model's own recipe: the file of conf/experiment whose recipe.models lists the model.

An experiment may list several models, so `experiment=MODEL` is a name too: it means that file, for this model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tencrop.config.schema import UserError
from tencrop.config.yaml_files import read_yaml_file, yaml_files

# The section `recipe:` of a file. Parsing it alone takes a tenth of the time of the whole file.
SECTION = re.compile(r"^recipe:.*?(?=^[^\s#]|\Z)", re.MULTILINE | re.DOTALL)
LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def own_experiment(model: str, folders: Iterable[Path]) -> str | None:
    """The name of the file that holds the recipe of `model`; None if there is none.

    folders: those with experiment files; in the order in which Hydra searches them. Raises UserError if two files list
    the model, or if a file that mentions it is broken.
    """
    found: dict[str, bool] = {}  # an earlier folder hides files of the same name in later ones
    for path in (path for folder in folders for path in yaml_files(folder)):
        # Other broken files do not matter, and most are ruled out without parsing them.
        if path.stem not in found:
            found[path.stem] = model.encode() in _content(path) and model in recipe_models(path)
    names = [name for name, is_own in found.items() if is_own]
    if len(names) > 1:
        raise UserError(
            f"model={model}: the experiments {' and '.join(names)} both list it in recipe.models; remove it from one,"
            " or type experiment=NAME"
        )
    return names[0] if names else None


@cache
def own_recipes(folder: Path) -> dict[str, list[str]]:
    """The models that each experiment file of a folder lists. Broken files are left out: who chooses one is told."""
    found = {}
    for path in yaml_files(folder):
        try:
            found[path.stem] = recipe_models(path)
        except UserError:
            continue
    return found


def recipe_models(path: Path) -> list[str]:
    """The entries of recipe.models in a file. Raises UserError with file and line if the file is broken."""
    section = SECTION.search(_content(path).decode(errors="replace"))
    if section is None:
        return []
    try:
        content: Any = yaml.load(section[0], LOADER)
    except yaml.YAMLError:
        content = read_yaml_file(path)  # raises the error with the file's own line numbers
    recipe = content["recipe"]
    return list(recipe.get("models") or []) if isinstance(recipe, dict) else []


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a dangling link: reported only when it is chosen
        return b""

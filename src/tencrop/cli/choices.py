"""Answers GROUP=? with the options of a group and KEY=? with the values of a key; lists the groups for --help."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from tencrop.cli.recipes import own_recipes
from tencrop.config.fields import describe_key, key_types
from tencrop.config.rules import MODEL_NAMES
from tencrop.config.schema import Config, UserError
from tencrop.config.yaml_files import yaml_files

PACKAGE = Path(__file__).resolve().parents[1]
IS_INSTALLED = PACKAGE.parts[-2:] != ("src", "tencrop")  # otherwise a checkout, with conf/ and the scripts at its root
CONF = PACKAGE / "conf" if IS_INSTALLED else PACKAGE.parents[1] / "conf"  # a wheel carries a copy (setup.py)
# The end of a header's first sentence. "et al." does not end one; " Published " begins the results of a model file.
SENTENCE_END = re.compile(r"(?<! al)[.;:](?= |$)| Published ")

LISTED_BY_COMMAND = {"table"}  # table=? lists the error tables: report.py and evaluate.py answer it, not this module


def check_conf() -> None:
    """Raise UserError if conf/ is missing: the package is neither in a checkout nor installed from a wheel."""
    if not CONF.is_dir():
        raise UserError(f"{CONF}: is missing; in tencrop's checkout, type pip install . or pip install -e .")


def list_options(arguments: list[str], schema: type) -> str | None:
    """The answer to a GROUP=? or KEY=? among the arguments of a command with this schema; None if there is none.

    model=? lists the files of conf/model with a description, model.name=? the name of every network for model=timm,
    optimizer.lr=? the values that the key accepts.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if value == "?" and key in groups():
            return describe(key)
        if (key, value) == ("model.name", "?"):
            return MODEL_NAMES.read_text().rstrip()
        if value == "?" and key in key_types(schema) and key not in LISTED_BY_COMMAND:
            return describe_key(schema, key)
    return None


def describe(group: str) -> str:
    """One line per option of a group: its name and the first sentence of its file; cut to the terminal's width.

    For models and experiments, the line also says which of them belong together.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000  # uncut for grep
    names = files_of(group)
    column = max(map(len, names), default=0) + 2
    related = _related(group)
    lines = []
    for name in names:
        line, end = f"{name:{column}}{first_sentence(CONF / group / f'{name}.yaml')}", related.get(name, "")
        room = width - len(end) if group == "model" else width  # cuts the description, not the experiment behind it
        lines.append(_cut(line, room) + end if group == "model" else _cut(line + end, room))
    return "\n".join(lines)


def _related(group: str) -> dict[str, str]:
    """By option, what follows its description: the experiment of a model, or the models of an experiment."""
    recipes = own_recipes(CONF / "experiment") if group in ("model", "experiment") else {}
    if group == "model":
        return {model: f" (experiment={name})" for name, models in recipes.items() for model in models}
    return {name: f" (model={', '.join(models)})" for name, models in recipes.items() if models}


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def first_sentence(path: Path) -> str:
    """The first sentence of the comment at the top of a file, without its period."""
    comments = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a dangling link: reported only when it is chosen
        return ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comments.append(line.removeprefix("#").strip())
    return SENTENCE_END.split(" ".join(comments), maxsplit=1)[0]


def option_names(*chosen: str) -> str:
    """The options of the chosen groups, one wrapped paragraph each; by default of all groups that train.py reads."""
    fields = {field.name for field in dataclasses.fields(Config)} | {"experiment"}
    paragraphs = [f"{group}: {', '.join(files_of(group))}" for group in chosen or fields.intersection(groups())]
    wrapped = [textwrap.fill(text, 110, subsequent_indent="  ", break_on_hyphens=False) for text in sorted(paragraphs)]
    return "\n".join(wrapped) + "\n"


def groups() -> list[str]:
    """The folders of conf/."""
    return [path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith(".")]


def options_of(group: str) -> list[str]:
    """All names that a group accepts, in natural order: its files, and for experiment the models that they list."""
    names = files_of(group)
    if group == "experiment":
        models = {model for models in own_recipes(CONF / group).values() for model in models}
        names = _sorted({*names, *models})
    return names


def files_of(group: str) -> list[str]:
    """The names of a group's files in natural order: resnet18 comes before resnet101."""
    return _sorted(path.stem for path in yaml_files(CONF / group))


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(
        names,
        # zero-padded digits compare as strings in numeric order
        key=lambda name: [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )

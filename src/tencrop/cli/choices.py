"""Answers GROUP=? with the options of a group and KEY=? with the values of a key; lists the groups for --help."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import textwrap
from pathlib import Path

from tencrop.config.fields import describe_key, key_types
from tencrop.config.rules import MODEL_NAMES
from tencrop.config.schema import Config, UserError
from tencrop.config.yaml_files import yaml_files

PACKAGE = Path(__file__).resolve().parents[1]
IS_INSTALLED = PACKAGE.parts[-2:] != ("src", "tencrop")  # otherwise a checkout, with conf/ and the scripts at its root
CONF = PACKAGE / "conf" if IS_INSTALLED else PACKAGE.parents[1] / "conf"  # a wheel carries a copy (setup.py)
# The end of a header's first sentence. "et al." does not end one; " Published " begins the results of a model file.
SENTENCE_END = re.compile(r"(?<! al)[.;:](?= |$)| Published ")


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
        if value == "?" and key in key_types(schema):
            return describe_key(schema, key)
    return None


def describe(group: str) -> str:
    """One line per option of a group: its name and the first sentence of its file; cut to the terminal's width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000  # uncut for grep
    column = max(map(len, options_of(group)), default=0) + 2
    lines = [f"{name:{column}}{first_sentence(CONF / group / f'{name}.yaml')}" for name in options_of(group)]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


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
    paragraphs = [f"{group}: {', '.join(options_of(group))}" for group in chosen or fields.intersection(groups())]
    wrapped = [textwrap.fill(text, 110, subsequent_indent="  ", break_on_hyphens=False) for text in sorted(paragraphs)]
    return "\n".join(wrapped) + "\n"


def groups() -> list[str]:
    """The folders of conf/."""
    return [path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith(".")]


def options_of(group: str) -> list[str]:
    """The options of a group in natural order: resnet18 comes before resnet101."""
    names = [path.stem for path in yaml_files(CONF / group)]
    return sorted(
        names,
        # zero-padded digits compare as strings in numeric order
        key=lambda name: [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )

"""Parses and checks KEY=VALUE words in Hydra's grammar, and formats such words for the user to type.

In Hydra's grammar, a value with = , # quotes, brackets or letters outside ASCII needs quotes inside those of the shell:
"data.root='/data/größe'". The check here runs before Hydra in every command, so that all accept the same words.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, overload

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from tencrop.cli.choices import IS_INSTALLED, files_of, groups
from tencrop.config.documents import literal
from tencrop.config.fields import Type, key_types, plain_types
from tencrop.config.schema import UserError

# The shell expands ~ only at the beginning of a word, so data.root=~/prepared reaches us unexpanded.
PATHS = (  # keys in which ~ is the home folder
    "data.root", "data.source", "data.stage", "data.subset_of_val", "runs", "checkpoint", "weights", "weights_dir",
    "output", "compare", "diff", "scores", "data_root", "labels", "training.init.checkpoint",
    "training.distill.teacher",
)  # fmt: skip
TEXTS = (  # keys that take no list
    "data.root", "data.source", "data.stage", "data.subset_of_val", "weights", "weights_dir", "output", "name",
    "data_root", "labels", "training.init.checkpoint", "training.distill.teacher",
)  # fmt: skip
# KEY=VALUE with Hydra's signs: +KEY adds a key, ~KEY deletes one, ++KEY adds or changes it.
WORD = re.compile(r"(?P<sign>[+~]{0,2})(?P<key>[A-Za-z_][\w./@-]*)=(?P<text>.*)", re.ASCII | re.DOTALL)
FOR_SHELL = re.compile(r'([^"$`\\!]|\\[^"$`\\!])*')  # text that double quotes preserve; ! for an interactive bash
A_LIST = re.compile(r"\[([^'\"]*)\]")


def parse(words: Iterable[str]) -> list[Override]:
    """Parse words that `check_words` has returned, as Hydra does."""
    return OverridesParser.create().parse_overrides(list(words))


def read_flags(words: Iterable[str]) -> argparse.Namespace:
    """What Hydra reads of a command: `overrides`, the KEY=VALUE words, `config_dir`, and its other flags.

    Raises UserError for words to which Hydra's argparse would answer with its usage.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(
            f"{message}; type values as KEY=VALUE without dashes, and flags such as --help after all values"
        )

    parser = get_args_parser()  # exits with a page of usage on an error
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(multirun_first(words))


def multirun_first(words: Iterable[str]) -> list[str]:
    """The words with -m in front: Hydra's argparse rejects values on both sides of a flag, as in A=1 -m B=2."""
    return sorted(words, key=lambda word: word not in ("-m", "--multirun"))


def keys_typed(words: Iterable[str]) -> set[str]:
    """The keys and groups in `words`, without + and ~ in front and @PACKAGE behind."""
    return {override.key_or_group for override in parse(words)}


def check_words(words: Iterable[str], schema: type) -> list[str]:
    """Check the words of a command with this schema, and expand ~ at the beginning of a path.

    Raises UserError, with the word to type instead, if Hydra cannot parse a word, or reads a value of another type than
    the text that the key takes: name=1e3 is a number to Hydra. A single text for a list of texts becomes a list of one.
    """
    kinds = key_types(schema)
    return [_check_word(_with_home(word), kinds) for word in words]


def instead_of_sweep(word: str) -> str:
    """A clause that tells what to type instead of a word that Hydra reads as a sweep."""
    key, _, text = word.partition("=")
    if key in groups():
        return "choose one of them"
    clauses = [] if key in TEXTS else [f"a list is typed as {for_shell(f'{key}=[{text}]')}"]
    if key in (*PATHS, "name"):
        clauses.append(f"one text is typed as {typed_word(key, text)}")
    return ", and ".join(clauses)


@overload
def expand_home(value: str) -> str: ...
@overload
def expand_home(value: object) -> object: ...
def expand_home(value: object) -> object:
    """Expand ~ and ~NAME at the beginning of a path, or of each path in a list; other values are returned unchanged."""
    if isinstance(value, list):
        return [expand_home(part) for part in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def command_prefix(name: str) -> str:
    """How the user starts a command: `tencrop NAME` if the package is installed, `python NAME.py` in a checkout."""
    return f"tencrop {name}" if IS_INSTALLED else f"python {name}.py"


def typed_word(key: str, value: str | Path | list[str]) -> str:
    """KEY=VALUE quoted for the shell and for Hydra, which then reads exactly this text or list of texts."""
    return for_shell(hydra_word(key, value))


def hydra_word(key: str, value: str | Path | list[str]) -> str:
    """Likewise without the shell's quotes, as sys.argv has it."""
    text = f"[{','.join(map(_element, value))}]" if isinstance(value, list) else _text(key, str(value))
    return f"{key}={text}"


def for_shell(text: str) -> str:
    """Quote `text` as one word of a shell command: bare, in double quotes, or as $'...' if it is not printable."""
    if not text.isprintable():
        return "$'" + "".join(map(_escaped, text)) + "'"
    if (plain := shlex.quote(text)) == text:
        return text
    return f'"{text}"' if FOR_SHELL.fullmatch(text) else plain


def _with_home(word: str) -> str:
    key, _, text = word.partition("=")
    if key.lstrip("+") not in PATHS or "~" not in text or text.startswith(("[", "'", '"')):
        return word  # inside quotes and brackets, ~ is expanded after parsing (command.py)
    return f"{key}={','.join(map(expand_home, text.split(',')))}"  # a comma separates the values of a sweep


def _check_word(word: str, kinds: dict[str, Type]) -> str:
    found = WORD.fullmatch(word)
    kind = kinds.get(found["key"], Any) if found else Any
    try:
        (override,) = parse([word])
    except HydraException as error:
        raise UserError(f"{word}: cannot be read as KEY=VALUE{_instead(word, found, kind)}") from error
    if word.startswith("="):
        raise UserError(f"{word}: names no key; a value is KEY=VALUE")
    if found is None or override.is_sweep_override():  # a deletion (~KEY), or a sweep, which has values of its own
        return word
    value = override.value()
    is_option = isinstance(value, str | dict) or (value is None and found["key"] == "experiment")
    if found["key"] in groups() and not is_option:
        raise UserError(f"{word}: {found['key']} is a name; {found['key']}=? lists the options")
    if found["key"].partition(".")[0] == "recipe":  # a guess that is typed away would be missing in the record
        raise UserError(f"{word}: an experiment says this about itself; choose one with experiment=NAME or model=NAME")
    if plain_types(kind) == {list} and isinstance(value, str):  # report.py runs=DIR
        return f"{found['sign']}{found['key']}=[{found['text']}]"
    if _takes(kind, str) and (read := _read_as(value, found["text"], kind)):
        raise UserError(f"{word}: is read as {read}; to mean this text, type {_form(found, kind)}")
    return word


def _read_as(value: object, text: str, kind: Type) -> str:
    """The type as which Hydra reads a text, if the key does not take this type; otherwise empty."""
    if value is None or isinstance(value, str) or _takes(kind, type(value)):
        return ""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):  # name=123 may become "123" again, but 1e3 would become "1000.0"
        return "" if str(value) == text else f"the number {value}"
    return "a list" if isinstance(value, list) else "a mapping"


def _instead(word: str, found: re.Match[str] | None, kind: Type) -> str:
    """A clause that tells what to type instead of a word that Hydra cannot parse."""
    if found is None:
        named = [f"{group}={word}" for group in groups() if word in files_of(group)]
        return f"; did you mean {' or '.join(named)}?" if named else '; with spaces in its value, type "KEY=A B"'
    if found["key"] in groups():
        return f"; {found['key']} is a name, and {found['key']}=? lists the options"
    if not (kind is Any or _takes(kind, str) or _takes(kind, list)):
        return f"; {found['key']} does not take text"
    is_text = _takes(kind, str) and not _takes(kind, list)
    if found["text"].startswith(("[", "{")) and not A_LIST.fullmatch(found["text"]) and not is_text:
        return '; a list is typed as "KEY=[A,\'B C\']", and a mapping as "KEY={A: 1, B: 2}"'
    return f"; type {_form(found, kind)}"


def _form(found: re.Match[str], kind: Type) -> str:
    """The word to type for what this one was probably meant to be."""
    listed = A_LIST.fullmatch(found["text"])
    if listed and (kind is Any or _takes(kind, list)):
        return typed_word(found["sign"] + found["key"], [part.strip() for part in listed[1].split(",")])
    return typed_word(found["sign"] + found["key"], found["text"])


def _takes(kind: Type, wanted: type) -> bool:
    """Whether the declared type `kind` includes the type `wanted`; Any does not count."""
    return wanted in plain_types(kind)


def _text(key: str, text: str) -> str:
    """A text for Hydra: bare, or in quotes if Hydra would read something else."""
    return text if _is_plain(f"{key}={text}", text) else _quoted(text)


def _element(text: str) -> str:
    """An element of a list for Hydra, likewise."""
    return text if _is_plain(f"a=[{text}]", [text]) else _quoted(text)


def _is_plain(word: str, value: str | list[str]) -> bool:
    # Asks Hydra's parser instead of repeating its grammar, which has many special cases. The parser accepts "${", but
    # OmegaConf would interpolate it later.
    try:
        (override,) = parse([word])
    except HydraException:
        return False
    return "${" not in word and not override.is_sweep_override() and override.value() == value


def _quoted(text: str) -> str:
    return QuotedString(literal(text), Quote.single).with_quotes()  # literal() keeps "${" from being interpolated


def _escaped(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))

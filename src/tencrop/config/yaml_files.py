"""The YAML files of conf/, which users write by hand: which of them count, and a mistake in one as a sentence.

Hydra reads them through `FileConfigSource`, everything else through `read_yaml_file`. A file is read only where it is
needed, so that one half written breaks nothing but the command that names it.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from tencrop.config.schema import UserError

MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files of a folder, sorted; without hidden ones, which macOS (._a.yaml) and Emacs (.#a.yaml) leave."""
    return sorted(path for path in folder.glob("[!.]*.yaml"))


def yaml_text(path: Path) -> str:
    """UserError with file and line where it is not plain UTF-8: PyYAML would name neither, and Hydra would overlook
    the header of a file that begins with a byte order mark."""
    content = path.read_bytes()
    if content.startswith(MARKS):
        raise UserError(f"{path}: line 1: begins with a byte order mark; save the file as UTF-8 without it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: is not UTF-8; save the file as UTF-8") from error


def read_yaml_file(path: Path) -> Any:
    """What a file says, as plain values, None where it is empty; UserError with file and line for a mistake in it."""
    text = yaml_text(path)
    try:
        return yaml.load(text, get_yaml_loader())
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context or "not YAML"
        assert mark is not None
        hint = "; YAML indents with spaces, not tabs" if "\\t" in problem else "; correct it"
        raise UserError(f"{path}: line {mark.line + 1}: {problem}{hint}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}: line {line}: holds a control character; remove it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise UserError(f"{path}: cannot be read as YAML ({error}); correct it") from error


def yaml_mapping(path: Path) -> DictConfig:
    """A file as Hydra would have it; UserError with file and line for a mistake, or where it is no mapping."""
    said = read_yaml_file(path)
    if not isinstance(said, dict | None):
        raise UserError(f"{path}: line 1: is no mapping; write KEY: VALUE lines, as the files beside it do")
    try:
        return OmegaConf.create(said or {})
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; correct it") from error

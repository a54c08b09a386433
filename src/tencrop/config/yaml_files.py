"""Lists and reads the YAML files of conf/, which users write by hand; a mistake becomes a sentence with file and line.

Hydra reads them through `FileConfigSource`, all other code through `read_yaml_file`. A file is read only when needed,
so a half-written one breaks only the command that names it.
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
    """The YAML files of a folder, sorted, without hidden ones, which macOS (._a.yaml) and Emacs (.#a.yaml) create."""
    # glob's order is the file system's.
    return sorted(path for path in folder.glob("[!.]*.yaml"))


def yaml_text(path: Path) -> str:
    """The text of a file. Raises UserError with file and line if it is not plain UTF-8.

    PyYAML would name neither. After a byte order mark, Hydra would also miss the `# @package` header.
    """
    content = path.read_bytes()
    if content.startswith(MARKS):
        raise UserError(f"{path}: line 1: begins with a byte order mark; save the file as UTF-8 without it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: is not UTF-8; save the file as UTF-8") from error


def read_yaml_file(path: Path) -> Any:
    """The content of a file as plain values, None if it is empty. Raises UserError with file and line for a mistake."""
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
        raise UserError(f"{path}: line {line}: contains a control character; remove it") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, deeply nested lists
        raise UserError(f"{path}: cannot be read as YAML ({error}); correct it") from error


def yaml_mapping(path: Path) -> DictConfig:
    """A file as an OmegaConf mapping. Raises UserError with file and line for a mistake, or if it is not a mapping."""
    content = read_yaml_file(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: line 1: is not a mapping; write KEY: VALUE lines, as the files beside it do")
    try:
        return OmegaConf.create(content or {})
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; correct it") from error

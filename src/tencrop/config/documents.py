"""Reads untrusted JSON and YAML files as plain data, limited in size and depth and checked against a declared shape.

All such files in run folders and prepared folders are read with `read_json` or `read_yaml`. These folders get copied,
edited and damaged, and may come from a stranger: a reader returns plain values or raises UserError, nothing else.

A shape is declared as data:

    str, int, float, bool, None   a value of that type; float accepts integers too, but neither NaN nor infinity
    FILE_NAME                     text usable as a file name: one that is not UTF-8 contains surrogates
    NUMBER                        a float that may be NaN or infinite
    object                        any plain value
    {"a", "b"}                    one of these strings
    (shape, shape)                a value of one of these shapes
    Between(low, high)            a number in this range, bounds included
    [shape]                       a list of any length; [shape, shape, ...] has exactly this length; NotEmpty(shape)
    {"key": shape, "key?": shape} a mapping with these keys; "?" marks an optional one; further keys are allowed
    {str: shape}                  a mapping with any keys
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from tencrop.config.schema import UserError

# The largest file we write is 15 MB: the manifest of 14 million images that lists every hundredth as skipped. Parsed
# JSON takes about ten times the memory of its text, so 64 MB already need 640 MB.
MAX_JSON_BYTES = 64 << 20
# A configuration is 4 kB. PyYAML's Python parser reads 100 kB/s, so this is under 3 seconds.
MAX_YAML_BYTES = 256 << 10
MAX_DEPTH = 40  # of nested lists and mappings: ours reach 6, and Python's recursion limit is some hundreds
FILE_NAME, NUMBER = "file name", "number"
Shape = Any  # as listed above: nested values of many types
# A mapping that was read from JSON or YAML. Its values have the types of the shape that it was checked against, which
# mypy cannot know.
Document = dict[str, Any]


class NotEmpty(NamedTuple):
    """A list of one or more values of a shape."""

    shape: Shape


class Between(NamedTuple):
    """An integer from `low` to `high`, both included; if a bound is a float, any number."""

    low: float
    high: float


def read_json(path: Path, shape: Shape, *, what: str, remedy: str) -> Any:
    """Read a JSON file. Raises UserError if it is missing, broken or has another shape.

    The message is "PATH: not `what` (the problem); `remedy`", where `remedy` tells the user how to fix it.
    """
    try:
        # Every file may be a stranger's or half copied, so size, syntax and shape are all checked before a reader sees
        # it.
        return parse_json(_content(path, MAX_JSON_BYTES), shape)
    except ValueError as error:
        raise UserError(f"{path}: not {what} ({error}); {remedy}") from error


def read_yaml(path: Path, shape: Shape, *, what: str, remedy: str) -> Any:
    """Read a YAML file that contains JSON types only. Arguments and errors are those of `read_json`.

    Refuses aliases, with which a file of 300 bytes can expand to 10^9 values, and tags; our writer emits neither.
    Interpolations such as ${runs} stay plain text.
    """
    try:
        value = yaml.load(_content(path, MAX_YAML_BYTES).decode(), _DataLoader)
        check_plain(value)
        check_shape(value, shape)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not {what} ({_problem(error)}); {remedy}") from error
    return value


def parse_json(content: bytes, shape: Shape) -> Any:
    """Parse JSON text. Raises ValueError with a few words if it is broken or has another shape."""
    try:
        value = json.loads(content.decode(), parse_int=_integer, object_pairs_hook=_mapping)
    except RecursionError as error:
        raise ValueError(f"lists or mappings are nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise ValueError(_problem(error)) from error
    check_plain(value)
    check_shape(value, shape)
    return value


def literal(value: object) -> Any:
    """Escape `value` for OmegaConf: "${...}" in a string then stays these characters and is not interpolated."""
    if isinstance(value, dict):
        return {key: literal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [literal(part) for part in value]
    if isinstance(value, str):  # OmegaConf unescapes backslashes only in front of "${", so only those are doubled
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def check_plain(value: object) -> None:
    """Raise ValueError unless `value` consists of JSON types, nested at most MAX_DEPTH deep.

    Integers must fit into 64 bits, and text must be encodable as a file name.
    """
    parts, depth = [value], 0
    while parts:  # breadth first, level by level: recursion could exhaust Python's stack
        if depth > MAX_DEPTH:
            raise ValueError(f"lists or mappings are nested more than {MAX_DEPTH} deep")
        inner: list[object] = []
        for part in parts:
            if isinstance(part, str):
                if not is_file_name(part):
                    raise ValueError("a text is not Unicode, or has a NUL in it")
            elif isinstance(part, dict):
                inner += part
                inner += part.values()
                if not all(isinstance(key, str) for key in part):
                    raise ValueError("a key is not text")
            elif isinstance(part, list):
                inner += part
            elif isinstance(part, int):
                if not -(2**63) <= part < 2**64:
                    raise ValueError("an integer has more than 64 bits")
            elif not (part is None or isinstance(part, float)):
                raise ValueError(f"a value is a {type(part).__name__}")
        parts, depth = inner, depth + 1


def check_shape(value: object, shape: Shape, key: str = "") -> None:
    """Raise ValueError unless `value` has `shape`; `key` is its dotted path, for the message."""
    # NamedTuples are tuples, hence the order of the tests. Scalars come first, as most values are scalars.
    if isinstance(shape, Between) or not isinstance(shape, tuple | list | dict):
        if not _is_simple(value, shape):
            raise ValueError(f"{key or 'it'} must be {_name(shape)}, not {_shown(value)}")
    elif isinstance(shape, tuple) and not isinstance(shape, NotEmpty):
        if not any(_fits(value, one) for one in shape):
            raise ValueError(f"{key or 'it'} must be {' or '.join(map(_name, shape))}, not {_shown(value)}")
    elif isinstance(shape, dict) and isinstance(value, dict):
        # Keys that the shape does not list are allowed: records of newer code are readable by older code.
        for name, inner in shape.items():
            if name is str:
                for found, part in value.items():
                    check_shape(part, inner, _joined(key, found))
            elif name.removesuffix("?") in value:
                check_shape(value[name.removesuffix("?")], inner, _joined(key, name.removesuffix("?")))
            elif not name.endswith("?"):
                raise ValueError(f"{_joined(key, name)} is missing")
    elif isinstance(shape, list | NotEmpty) and isinstance(value, list):
        # [A, B, C] is a list of exactly these three, [A] a list of any number of A.
        inner = shape if isinstance(shape, list) and len(shape) > 1 else [shape[0]] * len(value)
        if len(inner) != len(value) or (isinstance(shape, NotEmpty) and not value):
            raise ValueError(f"{key or 'it'} is a list of {len(value)} and must be {_name(shape)}")
        for number, (part, one) in enumerate(zip(value, inner, strict=True)):
            check_shape(part, one, f"{key}[{number}]")
    else:
        raise ValueError(f"{key or 'it'} must be {_name(shape)}, not {_shown(value)}")


def is_file_name(text: str) -> bool:
    """Whether `text` can be a file name: no NUL, and only those surrogates that stand for bytes outside UTF-8."""
    if text.isascii():
        return "\0" not in text
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")  # like os.fsencode, but independent of the locale
    except UnicodeEncodeError:
        return False


def _fits(value: object, shape: Shape) -> bool:
    try:
        check_shape(value, shape)
    except ValueError:
        return False
    return True


def _is_simple(value: object, shape: Shape) -> bool:
    if isinstance(shape, Between):
        kinds = (int, float) if float in map(type, shape) else (int,)
        return isinstance(value, int | float) and type(value) in kinds and shape.low <= value <= shape.high
    if isinstance(shape, set):
        return isinstance(value, str) and value in shape
    if shape is object or (shape is None and value is None):
        return True
    if shape is str:
        return isinstance(value, str) and (
            value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
        )
    # A whole number is a valid float: JSON writers drop the point of 1.0. A bool, which is an int to Python, is not.
    if shape is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if shape == NUMBER:
        return type(value) in (int, float)
    return type(value) is (str if shape == FILE_NAME else shape)  # not isinstance: a bool is an int to Python


def _name(shape: Shape) -> str:
    names = {str: "text", int: "an integer", float: "a finite number", bool: "true or false", None: "null"}
    if isinstance(shape, Between):
        return f"from {shape.low} to {shape.high}"
    if isinstance(shape, set):
        return " or ".join(sorted(shape))
    if isinstance(shape, NotEmpty):
        return "a list that is not empty"
    if isinstance(shape, list):
        return f"a list of {len(shape)}" if len(shape) > 1 else "a list"
    return "a mapping" if isinstance(shape, dict) else names.get(shape, f"a {shape}")


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _content(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():  # reading a named pipe would block forever
        raise ValueError("it is no file" if path.exists() else "it is missing")
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)  # not stat(): the file may grow in between
    except OSError as error:
        raise ValueError(f"it cannot be read: {os.strerror(error.errno or 0)}") from error
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return content


def _problem(error: Exception) -> str:
    """The error in a few words on one line."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return " ".join(f"{error.problem}, line {error.problem_mark.line + 1}".split())
    return " ".join(str(error).partition(";")[0].split())


def _integer(digits: str) -> int:
    if len(digits) > 20:  # int() takes quadratic time, and raises an error of its own from 4,300 digits on
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)


def _mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):  # json would silently keep the last one
        raise ValueError("a mapping has a duplicate key")
    return mapping


class _DataLoader(yaml.SafeLoader):
    """YAML loader without aliases, tags, dates and duplicate keys, limited to MAX_DEPTH levels."""

    depth = 0
    # Without these resolvers 2026-01-31 stays text, as in JSON, and << and = are ordinary keys.
    # Set on the subclass: other users of PyYAML's SafeLoader, such as OmegaConf, keep theirs.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(None, None, "an anchor or alias", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "a tag", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [(key.tag, str(key.value)) for key, _ in node.value]
        if len(set(keys)) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a mapping has a duplicate key", node.start_mark)
        return super().construct_mapping(node, deep=deep)

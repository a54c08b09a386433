"""Builds the dataclasses of the schema from plain values, and checks the type, choices and constraints of each field.

Called by config/rules.py. OmegaConf's structured configs are no alternative: they reject `Literal`, ignore constraints
and have no union that includes a list.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from tencrop.config.constraints import Constraint, Interval
from tencrop.config.fields import (
    Type,
    as_typed,
    bare_type,
    constraints_of,
    dotted_keys,
    field_types,
    in_words,
    key_types,
    members_of,
    plain_types,
    section_of,
    used_if,
)
from tencrop.config.schema import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schema = TypeVar("Schema", bound="DataclassInstance")

MISSING = "???"  # in YAML, OmegaConf's placeholder for a value that the user must give
# Text is accepted for numbers and booleans, as in OmegaConf: PyYAML, for example, reads 1e-3 as text.
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class _WrongType(ValueError):
    """The value is not of the declared type. Another member of a union may still accept it."""


class _NotAllowed(ValueError):
    """The value is of the declared type, but violates a constraint; the message says what is allowed."""


def build(schema: type[Schema], values: Mapping[Any, object]) -> Schema:
    """An instance of the dataclass `schema`.

    Raises UserError for an unknown key, a missing one, or a value that its field does not allow.
    """
    return _section(schema, values, prefix="", root=schema)


def _section(schema: type[Schema], values: Mapping[Any, object], *, prefix: str, root: type) -> Schema:
    kinds = field_types(schema)
    for name in values:
        if name not in kinds:
            close = difflib.get_close_matches(f"{prefix}{name}", dotted_keys(root), n=2, cutoff=0.5)
            near = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UserError(f"{prefix}{name}: there is no such key{near}")
    built: dict[str, Any] = {}  # Any: mypy cannot infer that each value has the type of its field
    for field in dataclasses.fields(schema):
        kind = kinds[field.name]
        # A missing section is built from an empty mapping, so that the message names the first missing key within it.
        absent = {} if dataclasses.is_dataclass(kind) else MISSING
        is_optional = not (field.default is field.default_factory is dataclasses.MISSING)
        if field.name in values or not is_optional:
            built[field.name] = _field(kind, values.get(field.name, absent), prefix + field.name, root)
    section = schema(**built)
    for name, kind in kinds.items():
        # After the section is built: selector and key are fields of the same section, in any order.
        if used := used_if(kind):
            choice, selector = getattr(section, used.selector), prefix + used.selector
            _check_used(prefix + name, getattr(section, name), choice in used.choices, f"{selector}={choice}")
    return section


def _check_used(key: str, value: object, is_used: bool, chosen: str) -> None:
    if is_used and value is None:
        raise UserError(f"{key}: {chosen} needs a value for it; give {key}=VALUE")
    if not is_used and value is not None:
        raise UserError(f"{key}={as_typed(value)}: {chosen} does not use it; set {key}=null")


def _field(kind: Type, value: object, key: str, root: type) -> object:
    # Here and not in OmegaConf, whose own error for "???" names the key but does not tell what to type.
    if value == MISSING:
        raise UserError(f"{key}: needs a value; give {key}=...")
    inner = section_of(kind)
    if inner and isinstance(value, dict):
        return _section(inner, value, prefix=f"{key}.", root=root)
    if inner and not (value is None and NoneType in plain_types(kind)):
        keys = ", ".join([f"{key}.{name}" for name in key_types(inner)][:3])
        raise UserError(f"{key}={as_typed(value)}: holds several keys; give one of them a value: {keys}, ...")
    (element,) = get_args(bare_type(kind)) if get_origin(bare_type(kind)) is list else (None,)
    if section_of(element) and isinstance(value, list):
        return [_field(element, part, f"{key}[{number}]", root) for number, part in enumerate(value)]
    try:
        return _converted(kind, value)
    except _WrongType as error:
        raise UserError(f"{key}={as_typed(value)}: {_expected(kind)}") from error
    except _NotAllowed as error:
        raise UserError(f"{key}={as_typed(value)}: {error}") from error


def _converted(kind: Type, value: object) -> Any:  # mypy cannot infer the type `kind`
    """The value, converted to the declared type, with all constraints checked. Raises _WrongType or _NotAllowed."""
    bare = bare_type(kind)
    if len(members_of(kind)) > 1:
        converted: Any = _member(kind, value)
    elif get_origin(bare) is list:
        converted = _list(kind, value)
    elif get_origin(bare) is dict:
        converted = _mapping(value)
    elif get_origin(bare) is Literal:
        converted = _choice(get_args(bare), value)
    else:
        converted = _scalar(bare, value)
    for constraint in constraints_of(kind):
        if not constraint.allows(converted):
            raise _NotAllowed(_refusal(kind, constraint))
    return converted


def _member(kind: Type, value: object) -> object:
    """The value, converted to the first member of a union that accepts it."""
    if value is None and NoneType in members_of(kind):
        return None
    members = [member for member in members_of(kind) if member is not NoneType]
    # `T | None`: the message of T's constraint is more precise than that of the whole union.
    if len(members) == 1:
        return _converted(members[0], value)
    for member in members:
        try:
            return _converted(member, value)
        except (_WrongType, _NotAllowed):
            continue
    raise _WrongType


def _list(kind: Type, value: object) -> list[object]:
    if not isinstance(value, list):
        raise _WrongType
    # Before the elements are checked: the refusal of a list describes its elements, which does not exclude NaN.
    if any(isinstance(part, float) and not math.isfinite(part) for part in value):
        raise _NotAllowed("every number must be finite")
    (element,) = get_args(bare_type(kind))
    try:
        return [_converted(element, part) for part in value]
    except _NotAllowed as error:  # the message then says what the whole list must be
        raise _NotAllowed(_expected(kind)) from error


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _WrongType
    return value


def _choice(choices: tuple[str, ...], value: object) -> str:
    # No conversion: YAML reads `off` as a boolean, and guessing which text was meant would correct silently.
    if value in choices:
        return value
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    raise _NotAllowed(f"must be {close[0] if close else 'one of ' + ', '.join(choices)}")


def _scalar(kind: type, value: object) -> object:
    if kind is bool and isinstance(value, bool | int | str) and str(value).lower() in BOOLEANS:
        return BOOLEANS[str(value).lower()]
    if kind not in (int, float, str) or isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _WrongType
    if kind is int and isinstance(value, float):  # even 1.0, as in OmegaConf
        raise _WrongType
    try:
        converted = kind(value)
    except (ValueError, OverflowError) as error:  # text that is no number, or an integer too large for float64
        raise _WrongType from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise _NotAllowed("must be a finite number")
    return converted


def _refusal(kind: Type, constraint: Constraint) -> str:
    if not isinstance(constraint, Interval):
        return _expected(kind)
    # The type is right, so the message does not repeat it.
    return f"must be {constraint}" + (f"; {constraint.hint}" if constraint.hint else "")


def _expected(kind: Type) -> str:
    """What a field accepts, for the end of a message."""
    hints = [constraint.hint for member in members_of(kind) for constraint in constraints_of(member)]
    return "; ".join([f"must be {in_words(kind)}", *filter(None, hints)])

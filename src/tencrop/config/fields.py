"""Reads the schema: its keys, their declared types, and what a key accepts in words, for messages and for KEY=?."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tencrop.config.constraints import Constraint, Increasing, Length, LowHigh, UsedIf

# A type as declared in the schema: a class, Literal[...], Annotated[...], a union, list[...] or dict[...]. Python 3.11
# has no type that includes all of these.
Type = Any
NOUNS = {int: "whole number", float: "number", str: "text", dict: "mapping"}


def dotted_keys(schema: type) -> list[str]:
    """All dotted keys of a nested dataclass, such as augmentation.pca.std."""
    return list(key_types(schema))


@cache
def key_types(schema: type, prefix: str = "") -> dict[str, Type]:
    """All dotted keys of a nested dataclass, with their declared types."""
    kinds: dict[str, Type] = {}
    for name, kind in field_types(schema).items():
        inner = section_of(kind)
        kinds |= key_types(inner, f"{prefix}{name}.") if inner else {prefix + name: kind}
    return kinds


@cache
def field_types(schema: type) -> dict[str, Type]:
    """The fields of a dataclass with their declared types, in order."""
    # include_extras keeps Annotated, whose metadata are the constraints. Cached, because reading the whole schema takes
    # 2.5 ms and every override of a command line is looked up in it.
    return get_type_hints(schema, include_extras=True)


def section_of(kind: Type) -> type | None:
    """The dataclass if the declared type is one, or is one or null; otherwise None."""
    members = (member for member in members_of(kind) if isinstance(member, type))
    return next((member for member in members if dataclasses.is_dataclass(member)), None)


def bare_type(kind: Type) -> Type:
    """A declared type without `Annotated`."""
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def constraints_of(kind: Type) -> list[Constraint]:
    """The constraints attached to a declared type itself, without those of its members or elements."""
    return [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Constraint)]


def used_if(kind: Type) -> UsedIf | None:
    """The `UsedIf` attached to a declared type."""
    return next((mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, UsedIf)), None)


def members_of(kind: Type) -> tuple[Type, ...]:
    """The members of a union; of another type, the type itself."""
    bare = bare_type(kind)
    return get_args(bare) if get_origin(bare) in (Union, UnionType) else (kind,)


def plain_types(kind: Type) -> set[Type]:
    """The plain types of the values that a declared type accepts.

    For example, {str, list, NoneType} for `Literal["auto"] | list[int] | None`.
    """
    if len(members := members_of(kind)) > 1:
        return set().union(*map(plain_types, members))
    bare = bare_type(kind)
    return {str} if get_origin(bare) is Literal else {get_origin(bare) or bare}


def describe_key(schema: type, key: str) -> str:
    """What a key accepts, as one line for KEY=?."""
    kind = key_types(schema)[key]
    line = f"{key}: {in_words(kind)}"
    if used := used_if(kind):
        selector = f"{key.rpartition('.')[0]}.{used.selector}"
        return f"{line}; used with {' or '.join(f'{selector}={choice}' for choice in used.choices)}"
    return line


def in_words(kind: Type, plural: bool = False) -> str:
    """A declared type with its constraints, described for a user: "a number above 0" rather than "float"."""
    # `int | float` keeps whole numbers whole, for the learning hash; a user need not know.
    if plain_types(kind) == {int, float}:
        kind = Annotated[(float, *constraints_of(kind))] if constraints_of(kind) else float
    if len(members := members_of(kind)) > 1:
        # a key with `UsedIf` is null only when it is not used
        return _union_in_words([member for member in members if member is not NoneType or not used_if(kind)])
    bare = bare_type(kind)
    if get_origin(bare) is Literal:
        return _either(list(get_args(bare)))
    if get_origin(bare) is list:
        return _list_in_words(kind)
    limits = "".join(f" {mark}" for mark in constraints_of(kind))
    if plural:
        return f"{NOUNS.get(bare, 'mapping')}s{limits}"
    names = {bool: "true or false", str: "text", NoneType: "null"}
    if get_origin(bare) is dict:
        return "a mapping, {A: 1, B: 2}"
    return names.get(bare) or f"a {NOUNS.get(bare, 'value')}{limits}"


def as_typed(value: object) -> str:
    """A value in the form in which the user types it."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _union_in_words(members: list[Type]) -> str:
    parts: list[str] = []
    for member in members:
        bare = bare_type(member)
        if get_origin(bare) is Literal:
            parts += get_args(bare)
        elif get_origin(bare) is list and get_args(bare)[0] in members:
            # For `T | list[T]`, so that a long description of T is not repeated.
            parts.append("a list [A,B,...] of such")
        else:
            parts.append(in_words(member))
    return _either(parts)


def _either(parts: list[str]) -> str:
    """The parts joined by commas and "or", with a comma before it if a part has commas outside of brackets."""
    *first, last = parts
    outside = [re.sub(r"\[.*?[])]", "", part) for part in first]
    needs_comma = any("," in part or " and " in part for part in outside) or any(" " in part for part in first[1:])
    return f"{', '.join(first)}{',' if needs_comma else ''} or {last}" if first else last


def _list_in_words(kind: Type) -> str:
    marks = constraints_of(kind)
    for mark in marks:
        if isinstance(mark, LowHigh):
            return str(mark)
    (element,) = get_args(bare_type(kind))
    shape = next((",".join("ABCDEFGH"[: mark.length]) for mark in marks if isinstance(mark, Length)), "A,B,...")
    order = ", each larger than the one before" if any(isinstance(mark, Increasing) for mark in marks) else ""
    return f"a list [{shape}] of {in_words(element, plural=True)}{order}"

"""The schema itself: every number has a range, every condition names existing choices; types in words."""

import dataclasses
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from tencrop.config import ComplexityConfig, Config, PrepareConfig, ReportConfig, VisualizationConfig
from tencrop.config.constraints import Increasing, Interval, Length, LowHigh, UsedIf
from tencrop.config.fields import (
    Type,
    bare_type,
    constraints_of,
    describe_key,
    dotted_keys,
    field_types,
    in_words,
    key_types,
    members_of,
    plain_types,
    section_of,
    used_if,
)

SCHEMAS = [Config, PrepareConfig, ReportConfig, VisualizationConfig, ComplexityConfig]


def unbounded(kind: Type) -> bool:
    """Whether some number that a declared type accepts has no range."""
    bare = bare_type(kind)
    if any(isinstance(mark, Interval | LowHigh) for mark in constraints_of(kind)):
        return False
    if len(members := members_of(kind)) > 1:
        return any(map(unbounded, members))
    return unbounded(get_args(bare)[0]) if get_origin(bare) is list else bare in (int, float)


def sections(schema: type) -> list[type]:
    inner = [section for kind in field_types(schema).values() if (section := section_of(kind))]
    return [schema, *(nested for section in inner for nested in sections(section))]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_number_has_a_range(schema):
    assert [key for key, kind in key_types(schema).items() if unbounded(kind)] == []


@pytest.mark.parametrize("section", sections(Config))
def test_a_key_is_used_with_choices_that_exist(section):
    for name, kind in field_types(section).items():
        if used := used_if(kind):
            assert set(used.choices) <= set(get_args(bare_type(key_types(section)[used.selector]))), name
            assert NoneType in plain_types(kind), name


def test_dotted_keys_reach_into_sections_that_may_be_null():
    assert {"seed", "augmentation.pca.std"} <= set(dotted_keys(Config)) and "augmentation" not in dotted_keys(Config)
    assert "model.bn_group" in dotted_keys(ComplexityConfig)


def test_plain_types():
    assert plain_types(Literal["auto"] | list[int] | None) == {str, list, NoneType}
    assert plain_types(Annotated[Annotated[float, Interval(gt=0)] | None, UsedIf("name", "sgd")]) == {float, NoneType}
    assert plain_types(dict[str, Any]) == {dict} and plain_types(Any) == {Any}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (Annotated[float, Interval(ge=0, le=1)] | None, "a number in [0, 1] or null"),
        (Annotated[int | float, Interval(gt=0)], "a number above 0"),
        (bool | None, "true or false or null"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Literal["auto"] | Annotated[int, Interval(gt=0)], "auto or a whole number above 0"),
        (list[str], "a list [A,B,...] of texts"),
        (str | list[str] | None, "text, a list [A,B,...] of such, or null"),
        (Annotated[list[float], Length(3)], "a list [A,B,C] of numbers"),
        (
            Annotated[list[float], Increasing()] | None,
            "a list [A,B,...] of numbers, each larger than the one before, or null",
        ),
        (Annotated[list[int], LowHigh(gt=0)], "[low, high] with 0 < low <= high"),
        (Annotated[Annotated[float, Interval(gt=0)] | None, UsedIf("name", "sgd")], "a number above 0"),
        (dict[str, Any], "a mapping, {A: 1, B: 2}"),
    ],
)
def test_a_type_in_words(kind, words):
    assert in_words(kind) == words


def test_a_key_is_described_with_the_choice_that_uses_it():
    assert describe_key(Config, "schedule.min_lr") == (
        "schedule.min_lr: a number 0 or above; used with schedule.name=cosine"
    )


def test_fields_keep_the_order_of_the_schema():
    assert list(field_types(Config)) == [field.name for field in dataclasses.fields(Config)]

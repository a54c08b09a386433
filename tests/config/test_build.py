"""Plain values become the schema's dataclasses, or are refused in one sentence with key, value and what is allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from tencrop.config import UserError
from tencrop.config.build import build
from tencrop.config.constraints import Interval, UsedIf


@dataclass
class Row:
    name: str


@dataclass
class Section:
    kind: Literal["one", "two"]
    rate: Annotated[float, Interval(gt=0, hint="0.1 is usual")]
    only_one: Annotated[int | None, UsedIf("kind", "one")] = None


@dataclass
class Schema:
    section: Section
    count: int
    is_on: bool | None = None
    numbers: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    given: str | list[str] | None = None
    mean: list[int | float] = field(default_factory=list)
    more: dict[str, Any] | None = None
    other: Section | None = None


def built(**values: Any) -> Schema:
    return build(Schema, {"section": {"kind": "two", "rate": 1}, "count": 3, **values})


def test_values_are_converted_as_omegaconf_does():
    config = built(count="7", is_on="off", numbers=[1, "1e-3"], given=12, rows=[{"name": "a"}])
    assert (config.count, config.is_on, config.numbers, config.given) == (7, False, [1.0, 1e-3], "12")
    assert isinstance(config.section.rate, float) and config.rows == [Row("a")]


def test_whole_numbers_of_a_list_of_both_kinds_stay_whole():
    assert [type(number) for number in built(mean=[124, 116.5]).mean] == [int, float]


def test_absent_keys_have_their_defaults():
    assert built() == Schema(Section("two", 1.0), 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 3}, "cuont: there is no such key; did you mean count?"),
        (
            {"section": {"kind": "one", "rat": 2}},
            "section.rat: there is no such key; did you mean section.rate",
        ),
        ({"section": {}}, "section.kind: needs a value; give section.kind=..."),
        ({"count": "???"}, "count: needs a value; give count=..."),
        ({"section": 3}, "section=3: holds several keys; give one of them a value: section.kind, section.rate"),
        ({"section": None}, "section=null: holds several keys"),
        ({"section": {"kind": "on", "rate": 1}}, "section.kind=on: must be one"),
        ({"section": {"kind": "x", "rate": 1}}, "section.kind=x: must be one of one, two"),
        ({"section": {"kind": None, "rate": 1}}, "section.kind=null: must be one of one, two"),
        ({"section": {"kind": "two", "rate": 0}}, "section.rate=0: must be above 0; 0.1 is usual"),
        ({"section": {"kind": "two", "rate": "x"}}, "section.rate=x: must be a number above 0; 0.1 is usual"),
        ({"section": {"kind": "two", "rate": float("nan")}}, "section.rate=nan: must be a finite number"),
        ({"section": {"kind": "two", "rate": 10**400}}, "must be a number above 0"),
        ({"section": {"kind": "one", "rate": 1}}, "section.only_one: section.kind=one needs a value for it; give"),
        (
            {"section": {"kind": "two", "rate": 1, "only_one": 5}},
            "section.only_one=5: section.kind=two does not use it; set section.only_one=null",
        ),
        ({"count": 1.0}, "count=1.0: must be a whole number"),
        ({"count": True}, "count=true: must be a whole number"),
        ({"count": None}, "count=null: must be a whole number"),
        ({"is_on": "maybe"}, "is_on=maybe: must be true or false or null"),
        ({"is_on": 1.0}, "is_on=1.0: must be true or false or null"),
        ({"numbers": 3}, "numbers=3: must be a list [A,B,...] of numbers"),
        ({"numbers": [1, None]}, "numbers=[1,null]: must be a list [A,B,...] of numbers"),
        ({"numbers": [1, {"a": 1}]}, "must be a list [A,B,...] of numbers"),
        ({"numbers": [float("inf")]}, "numbers=[inf]: every number must be finite"),
        ({"given": True}, "given=true: must be text, a list [A,B,...] of such, or null"),
        ({"rows": [{"name": "a"}, {"nam": "a"}]}, "rows[1].nam: there is no such key"),
        ({"rows": [3]}, "rows[0]=3: holds several keys"),
        ({"more": 3}, "more=3: must be a mapping, {A: 1, B: 2}, or null"),
        ({"more": {1: 2}}, "must be a mapping"),
        ({"other": {"kind": "two", "rate": -1}}, "other.rate=-1: must be above 0"),
    ],
)
def test_a_value_is_refused_in_one_sentence(values, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}" if ":" in message else re.escape(message)):
        built(**values)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.loader=fcv"], "data.loader=fcv: must be ffcv"),
        (["data.name=foo"], "data.name=foo: must be one of imagenet, imagefolder"),
        (["data.store.quality=500"], r"must be in \[1, 100\]"),
        (["augmentation.flip=1.5"], r"must be in \[0, 1\]"),
        (["augmentation.area=[0.5,0.1]"], "0 < low <= high <= 1"),
        (["augmentation.area=[0.5,1.5]"], "0 < low <= high <= 1"),
        (["augmentation.area=[0.5]"], r"augmentation.area=\[0.5\]: must be \[low, high\]"),
        (["augmentation=random_crop", "augmentation.side=[256,70000]"], "low <= high <= 65,500"),
        (["+augmentation.region=whole"], "augmentation.crop=random_sized does not use it"),
        (["protocol.side=[256,null]"], r"must be a whole number above 0 .*, a list \[A,B,...\] of such, or null"),
        (["protocol.side=large"], "protocol.side=large: must be a whole number above 0"),
        (["protocol.side=true"], "protocol.side=true: must be a whole number above 0"),
        (["protocol.side=70000"], "at most 65,500"),
        (["image_size=70000"], "image_size=70000: must be above 0 and at most 65,500"),
        (["training.minival_fraction=1"], "1 leaves nothing to train on"),
        (["training.ema_decay=1"], r"training.ema_decay=1: must be in \[0, 1\); 1 keeps the initial weights"),
        (["training.precision=fp16"], "training.precision=fp16: must be bf16"),
        (["schedule.milestones=null"], "schedule.milestones: schedule.name=step needs a value"),
        (["schedule.milestones=[60,30]"], "each larger than the one before"),
        (["schedule.milestones=[0,30]"], "numbers above 0"),
        (["schedule.gamma=2"], "must be above 0 and at most 1"),
        (["schedule.warmup_epochs=-5"], "must be 0 or above"),
        (["seed=-1"], "seed=-1: must be in"),
        (["seed=9223372036854775808"], "must be in"),
        (["normalization.mean=imagnet"], "normalization.mean=imagnet: must be imagenet, dataset"),
        (["normalization.mean=[a,b,c]"], r"a list \[A,B,C\] of numbers in \[0, 255\]; one per channel"),
        (["normalization.mean=[1,2]"], r"a list \[A,B,C\] of numbers in \[0, 255\]; one per channel"),
        (["normalization.std=[0,1,1]"], "numbers above 0"),
        (["hardware.workers=none"], "workers=none: must be auto or a whole number above 0"),
        (["hardware.workers=0"], "workers=0: must be auto or a whole number above 0"),
        (["hardware.devices=0"], "must be above 0"),
        (["optimizer.weight_decay=-1"], "must be 0 or above"),
        (["optimizer.momentum=1.5"], r"optimizer.momentum=1.5: must be in \[0, 1\); with 1, steps grow without end"),
        (
            ["optimizer=adamw", "optimizer.betas=[0.9]"],
            r"a list \[A,B\] of numbers in \[0, 1\); \[0.9,0.999\] is",
        ),
        (["optimizer=adamw", "optimizer.betas=[0.9,2]"], r"optimizer.betas=\[0.9,2\]: must be a list \[A,B\] of"),
        (["optimizer=adamw", "optimizer.betas=[0.9,null]"], r"optimizer.betas=\[0.9,null\]: must be a list \[A,B\] of"),
        (["optimizer=adamw", "optimizer.eps=0"], "must be above 0; with 0, weights without gradient become NaN"),
        (["augmentation.jitter.brightness=1.5"], r"must be in \[0, 1\]"),
        (["augmentation.jitter.hue=0.6", "augmentation.jitter.source=torchvision"], r"must be in \[0, 0.5\]"),
        (["augmentation.jitter.source=timm"], "must be one of torch, torchvision"),
        (["augmentation.randaugment.source=torch"], "must be torchvision"),
        (["augmentation.randaugment.num_ops=-1"], r"must be in \[0, 100\]"),
        (["augmentation.randaugment.prob=1.1"], r"must be in \[0, 1\]"),
        (["augmentation.randaugment.filter=box"], "must be one of nearest, bilinear, bicubic"),
        (["augmentation.erasing.prob=-0.1"], r"must be in \[0, 1\]"),
        (["augmentation.erasing.area=[0.02,1]"], "0 < low <= high < 1"),
        (["augmentation.erasing.aspect=[3,0.3]"], "0.001 <= low <= high <= 1,000"),
        (["augmentation.erasing.aspect=[0.3,{a:1}]"], r"must be \[low, high\]"),
        (["augmentation.erasing.fill=pixel"], "must be one of normal, mean"),
        (["augmentation.repeats=0"], "must be above 0"),
        (["augmentation.mixing.mixup_alpha=-1"], "must be 0 or above"),
        (["augmentation.mixing.switch_prob=2"], r"must be in \[0, 1\]"),
        (["+checkpoint=[a,{b:1}]"], r"must be text, a list \[A,B,...\] of such, or null"),
        (["name=true"], "name=true: must be text or null"),
    ],
)
def test_a_value_of_a_training_key_is_refused(composed, overrides, words):
    with pytest.raises(UserError, match=words):
        composed(*overrides)

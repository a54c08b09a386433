"""Every table of conf/errors loads, and a mistake in one is reported in a sentence with file and row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tencrop.cli.choices import CONF
from tencrop.config import UserError
from tencrop.tables.reading import read_table, read_tables, table_names
from tencrop.tables.schema import ErrorTable, RowTraining, parse_printed

Write = Callable[..., Path]
NAMES = [
    "ilsvrc_years", "alexnet_table1", "alexnet_table2", "alexnet_ablations", "zfnet_table2", "zfnet_table3",
    "nin_imagenet", "allcnn", "vgg_table3", "vgg_table4", "vgg_table5", "vgg_table6", "vgg_table7",
    "googlenet_table3", "bn_inception_figure4", "inception_v3_table3", "inception_v3_table4", "inception_v3_table5",
    "squeezenet_table2", "squeezenet_table3", "resnet_table2", "resnet_table3", "resnet_table4", "resnet_table5",
    "resnet_table6", "fb_resnet", "stochastic_depth_figure6", "wide_resnet_table7", "wide_resnet_table8",
    "fractalnet_table2", "resnext_table3", "resnext_table4", "resnext_table5", "resnext_shortcuts",
    "densenet_table3", "mobilenet_table4", "mobilenet_table5", "mobilenet_table6", "mobilenet_table7",
    "mobilenet_table8", "mobilenet_table9", "mobilenet_slim", "regnet", "efficientnet_table2",
    "efficientnet_table2_first", "efficientnet_baseline", "vit_table5", "plain_vit_table1", "deit_table5",
    "deit_resolutions", "swin", "convnext", "convnext_table10", "convmixer", "rsb", "ffcv_imagenet", "calibration",
]  # fmt: skip


@pytest.fixture(scope="module")
def tables() -> dict[str, ErrorTable]:
    return {table.name: table for table in read_tables()}


def test_every_table_exists(tables: dict[str, ErrorTable]) -> None:
    assert set(NAMES) <= set(tables) == set(table_names())
    assert len({table.title for table in tables.values()}) == len(tables)


def test_a_table_has_the_content_of_its_file(tables: dict[str, ErrorTable]) -> None:
    table = tables["vgg_table3"]
    (row,) = (row for row in table.rows if row.id == "d_jittered_384")
    assert (row.label, row.printed) == ("D, S=[256;512], Q=384", {"top1": "25.6", "top5": "8.1"})
    assert row.protocol is not None
    assert (row.protocol.name, row.protocol.side, row.protocol.size) == ("dense", 384, 224)
    assert row.protocol.not_stated == ["filter"]
    assert row.confidence == dict.fromkeys(("top1", "top5"), "two transcriptions")


def test_numbers_from_memory_are_marked(tables: dict[str, ErrorTable]) -> None:
    rows = {row.id: row for row in tables["fractalnet_table2"].rows}
    assert rows["fractalnet34"].confidence["top1"] == "memory, unverified"
    assert rows["resnet34_c"].confidence["top1"] == "two transcriptions"


def test_every_protocol_of_several_views_says_what_is_averaged(tables: dict[str, ErrorTable]) -> None:
    protocols = {(table.name, row.id): row.protocol for table in tables.values() for row in table.rows}
    several = {name: found.average for name, found in protocols.items() if found is not None and found.name != "center"}
    assert len(several) > 100 and set(several.values()) == {"softmax", "logits"}
    assert several["resnet_readme", "resnet50_ten_crop"] == "softmax"  # "averaging softmax scores"
    assert several["fb_resnet", "resnet50_ten_crop"] == "logits"  # the exp() of train.lua is commented out


def test_members_are_rows_of_this_table_or_another(tables: dict[str, ErrorTable]) -> None:
    rows = {row.id: row for row in tables["vgg_table6"].rows}
    members = rows["d_e_both"].members
    assert [(member.table, member.row) for member in members] == [
        ("vgg_table5", row) for row in ("d_dense", "d_crops", "e_dense", "e_crops")
    ]
    names = [member.protocol.name for member in members if member.protocol is not None]
    assert names == ["dense", "grid_crop"] * 2
    (five,) = (row for row in tables["alexnet_table2"].rows if row.id == "five_cnns")
    assert [(member.row, member.seeds) for member in five.members] == [("one_cnn", 5)]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "experiment": ({"experiment": "lenet_digits"}, "there is no conf/experiment/lenet_digits.yaml; did you mean"),
    "override of a group": ({"overrides": ["model=resnet51"]}, "there is no conf/model/resnet51.yaml; did you"),
    "override of a key": ({"overrides": ["optimizer.rl=1"]}, "optimizer.rl=1: there is no such key"),
    "override": ({"overrides": ["seed"]}, "seed: cannot be read as KEY=VALUE"),
    "protocol": ({"protocol": {"name": "tencrop"}}, 'protocol.name must be center .*ten_crop or null, not "te'),
    "protocol's key": ({"protocol": {"sides": 256}}, "protocol.sides: there is no such key"),
    "no protocol": ({"protocol": None}, "needs a protocol with a name"),
    "no name of it": ({"protocol": {"name": None}}, "needs a protocol with a name"),
    "member's protocol": (
        {"experiment": None, "members": [{"row": "lenet5", "protocol": None}]},
        "members: protocol=null: leave it out",
    ),
    "number for text": ({"top1": 2.0}, "top1 must be text or null, not 2.0"),
    "no number": ({"top1": "2,0"}, '"2,0" is not a printed number'),
    "no percent": ({"top1": "102.0"}, "outside 0 to 100 percent"),
    "sign without delta_of": ({"top1": "-1.4"}, "outside 0 to 100 percent"),
    "unknown key": ({"top10": "1.0"}, "top10: is neither a key nor one of the table's columns"),
    "id": ({"id": "LeNet-5"}, "an id may contain a-z, 0-9 and _ only"),
    "confidence": ({"confidence": "sure"}, "confidence must be"),
    "confidence of a column": ({"confidence": {"top1": "third party"}}, "must name each of top1, top5"),
    "path of initial weights": (
        {"overrides": ["training.init.checkpoint=runs/a"]},
        "training.init.checkpoint=runs/a: name the row whose run it starts from in init_from instead",
    ),
    "unknown source": ({"init_from": "lenet"}, "init_from: lenet: there is no row lenet in digits; did you mean"),
    "source's key": ({"init_from": ["experiment=lenet5_digits", "training.epoch=2"]}, "init_from: overrides: "),
    "own source": ({"init_from": "lenet5"}, "init_from: leads back to digits.lenet5"),
    "source without training": (
        {"experiment": None, "cannot": "too slow", "init_from": "lenet5"},
        "init_from: the row has no training that could start from a run",
    ),
    "reason beside an experiment": ({"cannot": "too slow"}, "has two of"),
    "member": ({"experiment": None, "members": [{"row": "lenet6"}]}, "there is no row lenet6 in digits; did you mean"),
    "member's table": ({"experiment": None, "members": [{"row": "mnist.lenet5"}]}, "there is no table mnist"),
    "ensemble of ensembles": ({"experiment": None, "members": [{"row": "lenet5"}]}, "is an ensemble itself"),
    "difference": ({"delta_of": "mnist.lenet5"}, "there is no table mnist"),
    "nothing": ({"experiment": None}, "names no experiment"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_row_names_file_and_row(mistake: str, write_row: Write) -> None:
    changes, words = MISTAKES[mistake]
    folder = write_row(**changes)
    with pytest.raises(UserError, match=words) as error:
        read_table("digits", folder)
    assert str(error.value).startswith(f"{folder}/digits.yaml: row {changes.get('id', 'lenet5')}: ")
    assert "\n" not in str(error.value)


OF_TABLE: dict[str, tuple[dict[str, Any], str]] = {
    "unit": ({"unit": "percent"}, 'unit must be accuracy or error, not "percent"'),
    "data": ({"data": "imagnet"}, "data=imagnet: must be one of"),
    "column": ({"columns": ["top1", "top2"]}, 'columns.1. must be .*, not "top2"'),
    "column twice": ({"columns": ["top1", "top1"]}, "has a duplicate"),
    "column that rows lack": ({"columns": ["top1", "top5", "test_top5"]}, "row lenet5: test_top5 is missing"),
    "column that rows have": ({"columns": ["top1"]}, "row lenet5: top5: is neither"),
    "protocol": ({"protocol": {"name": "center"}}, "protocol.*"),
    "key": ({"footnote": "a"}, "footnote: there is no such key"),
    "fingerprint": (
        {"data_fingerprint": {"train": "ab", "val": "c"}},
        "data_fingerprint.train: must be the source_fing",
    ),
    "no rows": ({"rows": []}, "rows is a list of 0"),
}


@pytest.mark.parametrize("mistake", OF_TABLE)
def test_a_mistake_in_a_table_names_the_file(mistake: str, write_table: Write) -> None:
    changes, words = OF_TABLE[mistake]
    folder = write_table(**changes)
    with pytest.raises(UserError, match=f"digits.yaml: .*{words}"):
        read_table("digits", folder)


def test_a_duplicate_row_is_refused(write_table: Write) -> None:
    row = {"id": "lenet5", "row": "LeNet-5", "top1": None, "top5": None, "cannot": "withheld"}
    with pytest.raises(UserError, match=re.escape("digits.yaml: row lenet5: is not unique")):
        read_table("digits", write_table(rows=[row, row | {"row": "LeNet"}]))


def test_tables_on_unsupported_data_need_a_reason(write_table: Write) -> None:
    with pytest.raises(UserError, match="row lenet5: no data= reads zip_codes; give this reason in cannot"):
        read_table("digits", write_table(data="zip_codes"))


def test_a_row_overrides_its_table(write_table: Write) -> None:
    rows = [
        {"id": "a", "row": "A", "top1": "1.0", "top5": None},
        {"id": "b", "row": "B", "top1": "1.0", "top5": None, "cannot": "no network", "num_runs": 5, "protocol": None},
        {"id": "c", "row": "C", "top1": "1.0", "top5": None, "protocol": {"side": [40, 48], "name": "ten_crop"}},
    ]
    a, b, c = read_table("digits", write_table(rows=rows, cannot="recipe not written", num_runs=3)).rows
    assert (a.reason, a.num_runs, b.reason, b.num_runs) == ("recipe not written", 3, "no network", 5)
    assert b.protocol is None and c.protocol is not None
    assert (c.protocol.name, c.protocol.side, c.protocol.size) == ("ten_crop", (40, 48), 32)
    assert c.protocol.not_stated == ["average"]  # of one view it says nothing


def test_a_row_starts_from_the_run_of_another(write_table: Write) -> None:
    row = {"top1": None, "top5": None, "experiment": "lenet5_digits"}
    first = {**row, "id": "a", "row": "A"}
    second = {**row, "id": "b", "row": "B", "init_from": "a", "overrides": ["training.init.head=new"]}
    third = {**row, "id": "c", "row": "C", "init_from": "digits.b"}
    a, b, c = read_table("digits", write_table(rows=[first, second, third])).rows
    own = RowTraining(("experiment=lenet5_digits",))
    head = RowTraining((*own.overrides, "training.init.head=new"), own)
    assert (a.training, b.training, c.training) == (own, head, RowTraining(own.overrides, head))
    assert c.training is not None and c.training.init_row == "digits.b"
    fourth = {**row, "id": "d", "row": "D", "init_from": ["experiment=lenet5_digits", "training.epochs=2"]}
    of_no_row = read_table("digits", write_table(rows=[fourth])).rows[0].training
    assert of_no_row == RowTraining(own.overrides, RowTraining(("experiment=lenet5_digits", "training.epochs=2")))
    folder = write_table(rows=[{**first, "init_from": "c"}, second, third])
    with pytest.raises(UserError, match=r"row a: init_from: leads back to digits\.a"):
        read_table("digits", folder)
    folder = write_table(rows=[{**first, "experiment": None, "cannot": "too slow"}, second])
    with pytest.raises(UserError, match="row b: init_from: a has no training of its own; name a row that has"):
        read_table("digits", folder)


@pytest.mark.parametrize(
    ("text", "value", "last_digit"),
    [("25.6", 25.6, 0.1), ("25.60", 25.6, 0.01), ("29", 29, 1), ("6.61±0.16", 6.61, 0.01), ("+1.4", 1.4, 0.1)],
)
def test_the_precision_of_a_printed_number_is_its_last_digit(text: str, value: float, last_digit: float) -> None:
    printed = parse_printed(text)
    assert (printed.value, printed.is_bound) == (value, False)
    assert printed.last_digit == pytest.approx(last_digit)


def test_a_bound_has_no_difference() -> None:
    assert parse_printed(">+1").is_bound and parse_printed("~+2").value == 2


def test_no_file_exceeds_the_size_limit() -> None:
    assert all(path.stat().st_size < 64 << 10 for path in (CONF / "errors").glob("*.yaml"))


def test_only_a_printed_number_needs_a_confidence(write_row: Write) -> None:
    path = write_row(top1=None, top5=None) / "digits.yaml"
    content = json.loads(path.read_text())
    del content["confidence"]
    path.write_text(json.dumps(content))
    table = read_table("digits", path.parent)
    assert not table.has_printed and table.rows[0].confidence == {}
    content["rows"][0]["top1"] = "2.0"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="row lenet5: confidence is missing"):
        read_table("digits", path.parent)

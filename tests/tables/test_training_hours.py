"""report.py table=NAME plan=true: device-hours of missing trainings, from measurements of train.py plan=true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tencrop.commands.report import _check
from tencrop.config import Config, UserError
from tencrop.config.command_schemas import ReportConfig
from tencrop.records.probes import SavedProbe, recipe_hash, save_probe
from tencrop.report.training_hours import Needed, hours_text, report_hours
from tencrop.tables.schema import RowTraining

A, B, C = (RowTraining((f"experiment={name}",)) for name in "abc")
H100, H200 = ("H100", 1), ("H200", 8)


def probe(device: tuple[str, int], hours: float) -> SavedProbe:
    """A measurement of a training that takes so many hours on these devices."""
    return SavedProbe("0123abcd", *device, seconds_per_step=hours * 3.6, num_steps=1_000)


def test_each_kind_of_device_has_a_sum_of_its_own() -> None:
    needed = [Needed("A", (A,)), Needed("A again", (A,)), Needed("B", (A, B)), Needed("C", (C,))]
    probes = {
        A.overrides: {H100: probe(H100, 10), H200: probe(H200, 1)},
        B.overrides: {H100: probe(H100, 20)},
        C.overrides: {},
    }
    lines = hours_text("t", needed, probes, num_untrainable=2).splitlines()
    assert lines[0] == "t: device-hours of the missing trainings; 2 rows cannot be trained"
    assert [line.split() for line in lines[2:8]] == [
        ["missing", "trainings", "1", "x", "H100", "8", "x", "H200"],
        ["A", "1", "10", "8"],
        ["A", "again", "1", "10", "8"],
        ["B", "2", "30", "–"],
        ["C", "1", "–", "–"],
        ["all,", "each", "training", "once", "3", "–", "–"],
    ]
    assert lines[9:12] == [
        "1 x H100: 30 device-hours for 2 of 3 trainings",
        "8 x H200: 8 device-hours for 1 of 3 trainings",
        "Hours on different devices are not added: each sum is of the trainings measured on that device.",
    ]
    assert lines[13:] == [
        "not measured: 1 of the recipes; measure each, with your data.root and hardware added:",
        "    python train.py experiment=c plan=true",
    ]


def test_nothing_is_missing() -> None:
    assert hours_text("t", [], {}, num_untrainable=0) == "t: no training is missing"


ROW: dict[str, Any] = {"top1": None, "top5": None, "experiment": "lenet5_digits"}


def test_measurements_are_found_by_recipe_and_a_command_makes_those_that_lack(
    write_table: Callable[..., Path],
    composed: Callable[..., Config],
    finished_run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    rows = [
        {**ROW, "id": "own", "row": "own", "num_seeds": 3},
        {**ROW, "id": "slow", "row": "slow", "overrides": ["optimizer.lr=0.002"]},
        {**ROW, "id": "tuned", "row": "tuned", "init_from": "slow", "overrides": ["training.init.head=new"]},
        {**ROW, "id": "no", "row": "no", "experiment": None, "cannot": "no recipe"},
    ]
    folder, runs = write_table(rows=rows), tmp_path / "runs"
    finished_run("seed=1")
    save_probe(runs, SavedProbe(recipe_hash(composed("experiment=lenet5_digits")), "a GPU", 2, 3.6, 1_000))

    def printed() -> list[str]:
        assert report_hours("digits", [str(runs)], tmp_path / "out", folder) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    said = printed()
    assert "own 2 4" in said, "two seeds are missing; each takes an hour on both devices"
    assert {"slow 1 –", "tuned 2 –", "all, each training once 4 –"} < set(said), "tuned: without its initial weights"
    assert "2 x a GPU: 6 device-hours for 3 of 4 trainings" in said
    assert said[-1] == "python train.py experiment=lenet5_digits optimizer.lr=0.002 plan=true"
    slow = composed("experiment=lenet5_digits", "optimizer.lr=0.002")
    save_probe(runs, SavedProbe(recipe_hash(slow), "a GPU", 2, 7.2, 1_000))
    said = printed()
    assert {"slow 1 4", "tuned 2 6"} < set(said) and said[-1] == "2 x a GPU: 10 device-hours for 4 of 4 trainings"
    (runs / "plans" / "broken.json").write_text("{")
    assert report_hours("digits", [str(runs)], tmp_path / "out", folder) == 2
    assert "broken.json: not a measurement of train.py plan=true" in capsys.readouterr().err


def test_initial_weights_do_not_change_the_time(composed: Callable[..., Config]) -> None:
    plain = composed("experiment=lenet5_digits")
    tuned = composed("experiment=lenet5_digits", "training.init.checkpoint=a", "training.init.head=new")
    assert (
        recipe_hash(plain)
        == recipe_hash(tuned)
        != recipe_hash(composed("experiment=lenet5_digits", "seed=1", "optimizer.lr=1"))
    )


@pytest.mark.parametrize("table", [None, "?"])
def test_a_plan_needs_a_table(table: str | None) -> None:
    with pytest.raises(UserError, match="plan=true: adds up the trainings of a table; name it with table=NAME"):
        _check(ReportConfig(runs=[], output="report", table=table, plan=True))

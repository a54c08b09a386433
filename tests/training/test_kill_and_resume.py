"""A short run of bench/kill_and_resume.py, which interrupts more trainings, and what its outcomes mean."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from interruptions import BETWEEN_LINKS, KINDS, PARTLY_WRITTEN, PLACES, Kind, Moment, MomentOfWrite
from kill_and_resume import NUM_STEPS, RECIPES, Found, Sequence, compare, run_sequence, sequences, table

BY_NAME = {kind.name: kind for kind in KINDS}
IN_WRITE = (MomentOfWrite(3, PARTLY_WRITTEN, 0.4), MomentOfWrite(2, BETWEEN_LINKS, 0.5))
SHORT: dict[str, tuple[Moment | MomentOfWrite, ...]] = {
    "SIGKILL": (Moment(15, 0.01), Moment(30, 0.05)),
    "SIGUSR1": (Moment(23, 0.0),),
    "SIGKILL in a checkpoint's write": IN_WRITE,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a module's sequences, which share the run without interruption."""
    return tmp_path_factory.mktemp("sequences")


@pytest.mark.parametrize("name", SHORT)
def test_a_training_with_all_parts_ends_like_an_undisturbed_one(name, folder, prepared_digits):
    sequence = Sequence(1, BY_NAME[name], "all parts", SHORT[name])
    found = run_sequence(sequence, folder, data=prepared_digits)
    assert found == Found(str(sequence), name, "all parts", len(sequence.moments), "equal")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["undisturbed-all-parts-1"]


def test_other_weights_and_rows_that_are_missing_or_repeated_are_found(folder, prepared_digits, tmp_path):
    run_sequence(Sequence(1, BY_NAME["SIGTERM"], "all parts", ()), folder, data=prepared_digits)
    (reference,) = (folder / "undisturbed-all-parts-1" / "lenet5_digits").iterdir()
    assert compare(reference, reference) == "equal"

    def changed(file: str, content: str) -> Path:
        copy = tmp_path / reference.name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(reference, copy)
        (copy / file).write_text(content)
        return copy

    lines = (reference / "metrics.jsonl").read_text().splitlines(keepends=True)
    for rows in (lines[:30] + lines[31:], lines[:30] + lines[29:], lines[:-1]):
        assert compare(changed("metrics.jsonl", "".join(rows)), reference) == "gap"
    manifest = json.loads((reference / "manifest.json").read_text())
    manifest["result"]["weights_sha256"] = "0" * 64
    assert compare(changed("manifest.json", json.dumps(manifest)), reference) == "different"


def test_an_exit_code_that_is_none_of_the_interruption_is_a_failure(folder, prepared_digits):
    """The command dies of SIGKILL, where SIGTERM was expected."""
    kind = Kind("SIGTERM", signal.SIGTERM, is_in_write=True)
    found = run_sequence(Sequence(2, kind, "all parts", IN_WRITE[1:]), folder, data=prepared_digits)
    assert (found.outcome, found.num_interruptions) == ("failed", 1)


def test_the_seed_chooses_moments_of_every_kind():
    planned = sequences(50, seed=0)
    assert planned == sequences(50, seed=0) and planned != sequences(50, seed=1)
    assert {(one.kind, one.recipe) for one in planned} == {(kind, recipe) for kind in KINDS for recipe in RECIPES}
    moments = [moment for one in planned for moment in one.moments]
    steps = [moment.step for moment in moments if isinstance(moment, Moment)]
    assert min(steps) == 0 and max(steps) == NUM_STEPS and len(set(steps)) > 20
    assert {moment.place for moment in moments if isinstance(moment, MomentOfWrite)} == set(PLACES)
    assert {moment.rank for moment in moments if isinstance(moment, Moment)} == {0, 1}


def test_the_table_counts_outcomes():
    found = [Found("", "SIGKILL", "plain", 2, "equal"), Found("", "SIGKILL", "plain", 1, "gap")]
    head, row, total = (line.split() for line in table(found))
    assert row == ["SIGKILL", "plain", "2", "3", "1", "0", "1", "0", "0"]
    assert total == ["all", *row[2:]] and head[-5:] == ["equal", "different", "gap", "traceback", "failed"]

"""doctor.py as a user runs it: two processes, with planted limits and a prepared folder, or without one."""

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.commands.doctor import lines
from tencrop.commands.doctor import main as doctor
from tencrop.config import UserError
from tencrop.doctor import examine as examination
from tencrop.doctor import storage
from tencrop.doctor.examine import examine
from tencrop.doctor.finding import Finding, ok

ROOT = Path(__file__).parents[2]
CHECKS = {
    "processes", "versions", "gpus", "slurm", "open files", "locked memory", "shared memory", "runs folder", "tracker",
    "all-reduce", "clocks", "loader", "data folder",
}  # fmt: skip


def test_two_processes_measure_together_and_a_planted_limit_is_an_error(prepared_digits, tmp_path):
    def plant() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (250, 250))

    words = ["experiment=lenet5_digits", "hardware=ddp_cpu2", f"data.root={prepared_digits}", f"runs={tmp_path}/runs"]
    command = [sys.executable, "doctor.py", *words, "tracker=none", "json=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=plant)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    state = {finding["check"]: finding["state"] for finding in said["findings"]}
    assert state.keys() == CHECKS and not said["is_ready"]
    assert {check for check in CHECKS if state[check] == "error"} == {"open files"}, said
    texts = {finding["check"]: finding["text"] for finding in said["findings"]}
    assert "between 2 ranks (gloo)" in texts["all-reduce"] and "2 x " in texts["loader"]
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_not_prepared_are_an_error_with_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        doctor(
            ["experiment=lenet5_digits", "hardware=cpu", f"data.root={tmp_path}", f"runs={tmp_path}", "tracker=none"]
        )
    said = capsys.readouterr().out
    assert stop.value.code == 1 and "prepare it with: python prepare.py data=digits" in said
    assert "error    data folder" in said and "error    loader" in said


@pytest.fixture
def quick(monkeypatch) -> None:
    """Without the measurements that take seconds."""
    monkeypatch.setattr(examination, "_rates", lambda *_: (1000.0, 10.0))
    monkeypatch.setattr(storage, "WRITTEN_BYTES", 1 << 20)


def states(config) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(config)}


def test_ranks_that_do_not_come_are_an_error_beside_the_other_lines(composed, quick, monkeypatch, tmp_path):
    @contextlib.contextmanager
    def nobody(_: int):
        raise UserError("of 2 processes, rank 1 did not come to 10.0.0.1:1 within 10 minutes; start all of them")
        yield

    monkeypatch.setattr(examination, "launch_ranks", nobody)
    found = states(composed("hardware=ddp_cpu2", f"runs={tmp_path}", "tracker=none"))
    assert found["ranks"].state == "error" and "rank 1 did not come" in found["ranks"].text and found["ranks"].remedy
    assert found["runs folder"].state == "ok" and "loader" not in found


@pytest.mark.parametrize(("place", "state"), [("disk", "ok"), ("small_disk", "error")])
def test_the_disk_for_a_copy_of_the_data(composed, quick, prepared_digits, small_disk, tmp_path, place, state):
    words = ["experiment=lenet5_digits", "hardware=cpu", f"data.root={prepared_digits}", f"runs={tmp_path}/runs"]
    found = states(composed(*words, "tracker=none", f"data.stage={tmp_path / place}"))
    assert found["stage folder"].state == state and "6.6 MB" in found["stage folder"].text
    assert (found["stage folder"].remedy is None) == (state == "ok") and found["loader"].state == "ok"


def test_bad_input_is_refused_before_any_check(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor(["hardware=gpu9"])
    assert stop.value.code == 2 and "hardware=gpu9" in capsys.readouterr().err


def test_a_line_names_the_nodes_it_is_true_of():
    both, one = ok("versions", "torch 2"), Finding("clocks", "warning", "late", "chrony", ("b",))
    text = lines([Finding(both.check, both.state, both.text, None, ("a", "b")), one])
    assert text == [
        "ok       versions  torch 2",
        "warning  clocks    b: late",
        "                   to fix it: chrony",
        "2 checks: 0 errors, 1 warning",
    ]

"""doctor.py as a user runs it: two processes, with planted limits and a prepared folder, or without one."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.commands.doctor import lines
from tencrop.commands.doctor import main as doctor
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

"""Reproducing compares the final weights, and refuses what cannot be compared."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hydra import compose, initialize_config_dir

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import (
    Config,
    UserError,
    validate,
)
from tencrop.data.store.manifest import FORMAT
from tencrop.records import reproduce as module
from tencrop.records.provenance import PACKAGE
from tencrop.records.reproduce import main, reproduce, run_and_forward, train_again, what_differs
from tencrop.records.run_folder import finish, read_run_manifest, run_folder


@pytest.fixture
def complete_run(make_config, data_manifest, tmp_path):
    """A complete run whose weights have the hash "a", and its prepared data."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "manifest.json").write_text(json.dumps({"format": FORMAT, **data_manifest}))
    folder = run_folder(make_config(f"data.root={root}"), data_manifest)
    finish(folder, status="complete", weights_sha256="a" * 64)
    return folder


@pytest.fixture
def trains_to(monkeypatch, make_config, data_manifest):
    """trains_to(hash): stands for train.py."""

    def stand_in(weights_sha256):
        def train_again(run_dir, into):
            again = run_folder(make_config(f"runs={into}"), data_manifest)
            finish(again, status="complete", weights_sha256=weights_sha256)

        monkeypatch.setattr(module, "train_again", train_again)

    return stand_in


@pytest.mark.parametrize(("weights_sha256", "exit_code"), [("a" * 64, 0), ("b" * 64, 1)])
def test_compares_the_weights(complete_run, trains_to, capsys, weights_sha256, exit_code):
    trains_to(weights_sha256)
    assert main([str(complete_run)]) == exit_code
    assert weights_sha256 in capsys.readouterr().out


def test_an_unwritable_folder_is_refused_before_the_training(complete_run, read_only, tmp_path, capsys):
    place = read_only(tmp_path / "runs") / complete_run.relative_to(tmp_path / "runs")
    assert main([str(place)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(
        f"error: {place}/reproduced/reproduce.yaml: cannot be written (the file system is read-only);"
    )
    assert said.err.endswith("--into DIR\n") and said.out == ""


def test_refusals(complete_run, trains_to, tmp_path, capsys):
    trains_to("a" * 64)
    with pytest.raises(UserError, match="not empty"):
        reproduce(complete_run, tmp_path)
    manifest = (tmp_path / "data" / "manifest.json").read_text()
    (tmp_path / "data" / "manifest.json").write_text(manifest.replace("train" * 8, "other"))
    with pytest.raises(UserError, match="train images are not those"):
        reproduce(complete_run, tmp_path / "again")
    finish(complete_run, status="interrupted", weights_sha256=None)
    assert main([str(complete_run)]) == 2
    assert "not complete (interrupted)" in capsys.readouterr().err


def test_a_reproduction_that_was_refused_can_be_typed_again(complete_run, tmp_path, monkeypatch):
    """train.py refuses a stray LOCAL_RANK, say, when the folder holds its configuration already."""
    monkeypatch.setattr(module, "what_differs", lambda _: [])  # it runs git
    monkeypatch.setattr(module, "run_and_forward", lambda command: 2)
    for _ in range(2):
        with pytest.raises(SystemExit, match="2"):
            reproduce(complete_run, tmp_path / "into")
    (tmp_path / "into" / "other").touch()
    with pytest.raises(UserError, match="not empty"):
        reproduce(complete_run, tmp_path / "into")


def test_a_folder_that_cannot_be_created_is_reported_in_one_sentence(complete_run, capsys):
    into = complete_run / "manifest.json" / "again"
    assert main([str(complete_run), "--into", str(into)]) == 2
    said = capsys.readouterr().err
    assert "a part of the path is a file and not a folder" in said and said.count("\n") == 1


def test_a_strangers_configuration_is_treated_as_data(complete_run, trains_to, tmp_path, monkeypatch):
    """Hydra would obey a section of its own, a list of defaults and interpolations in the file that it composes."""
    commands: list[list[str]] = []

    def note(command: list[str]) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(module, "run_and_forward", note)
    path = complete_run / "config.yaml"
    path.write_text(path.read_text().replace("source: null", "source: ${oc.env:HOME}"))
    train_again(complete_run, tmp_path / "into")
    place = commands[0].index("--config-path") + 1
    with initialize_config_dir(commands[0][place], version_base="1.3"):
        config = validate(compose(commands[0][place + 2]), Config)
    assert config.data.source == "${oc.env:HOME}"
    assert (config.runs, config.tracker.name) == (str(tmp_path / "into"), "none")
    assert config.model == config_of_run(complete_run, [], conf=CONF).model
    manifest = read_run_manifest(complete_run)
    del manifest["config_sha256"]  # a stranger's has the digest that fits, or none
    (complete_run / "manifest.json").write_text(json.dumps(manifest))
    for section in ("hydra:\n  run:\n    dir: /tmp\n", "defaults:\n- hydra/launcher: submitit_slurm\n"):
        path.write_text(path.read_text() + section)
        with pytest.raises(UserError, match="there is no such key"):
            train_again(complete_run, tmp_path / "other")
    assert len(commands) == 1


CHILD = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.{name}, lambda *_: sys.exit(75))
Path(sys.argv[1]).touch()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_training_and_does_not_end_this_process(number, tmp_path):
    started, before = tmp_path / "started", signal.getsignal(number)

    def kill_when_started():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=kill_when_started)
    thread.start()
    assert run_and_forward([sys.executable, "-c", CHILD.format(name=number.name), str(started)]) == 75
    thread.join()
    assert signal.getsignal(number) == before


def test_a_training_that_a_signal_ended_has_an_exit_code_of_its_own():
    assert run_and_forward(["sh", "-c", "kill -9 $$"]) == 137


def test_reports_the_differences(complete_run):
    manifest = read_run_manifest(complete_run)
    assert what_differs(manifest) == []
    manifest["sessions"][0]["packages"]["torch"] = "1.0"
    manifest["sessions"][0]["hardware"]["cpu"] = "abacus"
    manifest["sessions"].append(manifest["sessions"][0])
    text = "\n".join(what_differs(manifest))
    assert "torch was 1.0" in text and "cpu was abacus" in text and "continued 1 times" in text


def test_a_real_run_is_reproduced(prepared_digits, tmp_path, capfd):
    overrides = ["experiment=lenet5_digits", f"data.root={prepared_digits}", f"runs={tmp_path}/runs", "tracker=none"]
    command = [sys.executable, str(PACKAGE.parents[1] / "train.py"), *overrides, "training.max_steps=20"]
    subprocess.run(command, check=True)
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert main([str(folder)]) == 0
    assert "the same weights, bit for bit" in capfd.readouterr().out

"""A job is requeued as long as its checkpoint advances, and otherwise three times."""

import os
from pathlib import Path

import pytest

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training, sweep_jobs
from tencrop.commands.requeue import main, requeue
from tencrop.config import run_path


def write_checkpoint(words: list[str], written: int) -> None:
    path = run_path(compose_training(words, CONF)) / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, ns=(written, written))


def test_three_starts_without_a_new_checkpoint_are_allowed(tmp_path, capsys):
    words = ["experiment=lenet5_digits", f"runs='{tmp_path}'"]
    assert [requeue(words, "7") for _ in range(4)] == [True, True, True, False]
    assert capsys.readouterr().out.splitlines()[2:] == [
        "requeueing the job; no new checkpoint, attempt 3 of 3",
        "not requeueing the job: no new checkpoint in 4 starts; submitting it again continues",
    ]
    assert requeue(words, "8")  # submitted again
    write_checkpoint(words, 10)
    assert requeue(words, "7")
    assert capsys.readouterr().out.endswith("requeueing the job, which resumes from its checkpoint\n")
    assert [requeue(words, "7") for _ in range(4)] == [True, True, True, False]
    write_checkpoint([*words, "seed=1"], 20)  # of another run
    assert not requeue(words, "7")


def test_any_run_of_a_sweep_counts(tmp_path):
    words = ["-m", "experiment=lenet5_digits", "seed=0,1", "optimizer.lr=0.1,0.2", f"runs='{tmp_path}'"]
    assert len(sweep_jobs(words[1:])) == 4
    assert [requeue(words, "7") for _ in range(4)] == [True, True, True, False]
    write_checkpoint([words[1], "seed=1", "optimizer.lr=0.2", words[-1]], 10)
    assert requeue(words, "7")


FOR_HYDRA = {
    "a folder of one's own": ["experiment=mine", "RUNS", "--config-dir", "own"],
    "the same, in front": ["--config-dir=own", "experiment=mine", "RUNS"],
    "a search path": ["experiment=mine", "RUNS", "hydra.searchpath=[file://own]"],
    "its folder": ["experiment=lenet5_digits", "RUNS", "hydra.run.dir=x"],
    "its launcher": ["experiment=lenet5_digits", "seed=0,1", "-m", "hydra/launcher=basic", "RUNS"],
}


@pytest.mark.parametrize("case", FOR_HYDRA)
def test_words_that_are_for_hydra_do_not_end_the_job(case, tmp_path):
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    mine = "# @package _global_\ndefaults: [lenet5_digits]\nname: mine\n"
    (folder / "experiment" / "mine.yaml").write_text(mine)
    values = {"RUNS": f"runs={tmp_path}", "hydra.searchpath=[file://own]": f"hydra.searchpath=[file://{folder}]"}
    words = [values.get(word, word) for word in FOR_HYDRA[case]]
    assert requeue(words, "7")
    own = [word for word in words if word.startswith("experiment=")]
    run_dir = run_path(compose_training([*own, f"runs={tmp_path}"], CONF, "own"))
    assert run_dir.parent.name == own[0].removeprefix("experiment=")
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "last.ckpt").touch()
    assert [requeue(words, "7") for _ in range(4)] == [True] * 4, "the checkpoint counts as progress"


@pytest.mark.parametrize("content", ["{", "[]", '{"checkpoints": 1, "num_without_progress": 9}'])
def test_a_damaged_count_starts_again(content, tmp_path, capsys):
    (tmp_path / ".requeues").mkdir()
    (tmp_path / ".requeues" / "7.json").write_text(content)
    assert requeue(["experiment=lenet5_digits", f"runs='{tmp_path}'"], "7")
    assert capsys.readouterr().out.endswith("no new checkpoint, attempt 1 of 3\n")


def test_words_that_do_not_compose_are_not_requeued(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["requeue", f"runs={tmp_path}", "model=resnet5"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "conf/model/resnet5.yaml" in error and error.endswith("not requeueing the job\n")
    assert not any(Path(tmp_path).iterdir())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

"""submit.py as a user runs it, with a stand-in for SLURM; tests/cluster has a real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.config.run_config import read_written_config


def submit(checkout: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "submit.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    return subprocess.run(command, cwd=cwd or checkout, env=environment, capture_output=True, text=True)


@pytest.fixture
def words(prepared_digits, tmp_path) -> list[str]:
    return [
        "experiment=lenet5_digits", "hardware=cpu", "hardware.workers=1", "tracker=none", "training.max_steps=1",
        f"data.root={prepared_digits}", f"runs={tmp_path}/the runs",
    ]  # fmt: skip


def test_a_queued_job_runs_the_code_that_was_submitted(checkout, words, slurm, tmp_path):
    done = submit(checkout, *words)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith("log file"))
    (run_dir,) = tmp_path.glob("the runs/lenet5_digits/seed0-*")
    assert said["job"] == "101" and said["run"] == f"folder  {run_dir}"
    assert said["follow"] == f'tail -F "{run_dir}/slurm-101.log"'
    assert read_written_config(run_dir / "config.yaml")["training"]["max_steps"] == 1
    # later edits of the checkout: code that would fail, and a recipe that would learn something else
    (checkout / "src" / "tencrop" / "training" / "fit.py").write_text("raise RuntimeError('edited')\n")
    recipe = checkout / "conf" / "experiment" / "lenet5_digits.yaml"
    recipe.write_text(recipe.read_text() + "\nseed: 5\n")
    (call,) = slurm.calls()
    ran = slurm.start(call)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    manifest = json.loads((run_dir / "manifest.json").read_text())
    revision = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert manifest["result"]["status"] == "complete"
    assert manifest["sessions"][0]["code"]["revision"] == revision.strip()
    again = submit(checkout, *words[:4], *words[4:])
    assert again.returncode != 0 or "complete, not submitted" in again.stdout  # the edited fit.py is imported last


def test_several_seeds_are_an_array_in_which_each_is_a_run(checkout, words, slurm, tmp_path):
    done = submit(checkout, *words, "seed=3,1")
    assert done.returncode == 0 and "101, an array of 2 seeds" in done.stdout, done.stderr
    (call,) = slurm.calls()
    assert "--array=3,1" in call and not any(word.startswith("seed=") for word in call)
    assert {path.name.partition("-")[0] for path in tmp_path.glob("the runs/*/seed*")} == {"seed1", "seed3"}
    ran = slurm.start(call, index=3)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (run_dir,) = tmp_path.glob("the runs/*/seed3-*")
    assert json.loads((run_dir / "manifest.json").read_text())["result"]["status"] == "complete"


def test_words_arrive_as_typed(checkout, words, slurm):
    odd = ["name=a b", "training.freeze=[conv1.*, 'x y']", "'data.source=/with, comma'"]
    done = submit(checkout, *words, *odd[:2], "data.source='/with, comma'")
    assert done.returncode == 0, done.stderr
    assert slurm.calls()[0][-3:] == ["name=a b", "training.freeze=[conv1.*, 'x y']", "data.source='/with, comma'"]


def test_a_dry_run_shows_the_batch_file_and_writes_nothing(checkout, words, slurm, tmp_path):
    done = submit(checkout, *words, "dry_run=true", "cluster.partition=gpu", "cluster.modules=[cuda]")
    assert done.returncode == 0, done.stderr
    assert "--partition=gpu" in done.stdout and (checkout / "slurm" / "train.sbatch").read_text() in done.stdout
    assert "module load cuda || exit 2" in done.stdout
    assert slurm.calls() == [] and not (tmp_path / "the runs").exists()


def test_what_slurm_refuses_leaves_nothing(checkout, words, slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSE", "invalid partition specified: x")
    done = submit(checkout, *words)
    assert done.returncode == 2
    assert "sbatch refused the job (sbatch: error: invalid partition specified: x); change" in done.stderr
    assert list(tmp_path.glob("the runs/**/*.*")) == []


REFUSED = {
    "hardware": (["hardware=auto"], "hardware=auto: a job must state what it needs"),
    "data": (["data.root=/nowhere"], "data.root=/nowhere: holds no prepared data"),
    "batch": (["training.global_batch=7777"], "there are only 1297 images to train on"),
    "seeds": (["seed=1,1"], "seed=1,1: names a seed twice"),
    "cluster": (["cluster=none"], "there is no conf/cluster/none.yaml"),
    "key of a cluster": (["cluster.nodes=3"], "cluster.nodes: there is no such key"),
    "table and recipe": (["table=lenet5_mnist"], "each row gives the runs and the protocol"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_at_once(case, checkout, words, slurm, tmp_path):
    more, message = REFUSED[case]
    done = submit(checkout, *words, *more)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert slurm.calls() == [] and not (tmp_path / "the runs").exists()


def test_a_run_that_has_a_job_is_not_submitted_twice(checkout, words, slurm):
    assert submit(checkout, *words).returncode == 0
    (slurm.folder / "pending").write_text("101\n")
    done = submit(checkout, *words)
    assert done.returncode == 2 and "job 101 trains it; scancel 101 ends that job" in done.stderr
    (slurm.folder / "pending").unlink()  # it has ended
    assert submit(checkout, *words).returncode == 0 and len(slurm.calls()) == 2


def test_a_table_is_its_missing_runs_and_then_its_evaluation(checkout, words, slurm, prepared_digits, tmp_path):
    common = ["hardware=cpu", "tracker=none", f"data.root={prepared_digits}", f"runs={tmp_path}/runs"]
    listed = subprocess.run(
        [sys.executable, "evaluate.py", "table=TABLE", *common], cwd=checkout, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{checkout}/src"},
    )  # fmt: skip
    print(listed.stdout)
    done = submit(checkout, "table=TABLE", *common)
    assert done.returncode == 0, done.stderr
    *trainings, evaluation = slurm.calls()
    numbers = ":".join(str(101 + place) for place in range(len(trainings)))
    assert f"--dependency=afterany:{numbers}" in evaluation
    assert evaluation[-5:] == ["table=TABLE", *common] and evaluation[-6].endswith("/slurm/evaluate.sbatch")

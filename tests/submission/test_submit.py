"""submit.py as a user runs it, with a stand-in for SLURM; tests/cluster has a real one."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from submission.checkout import CHAIN, TABLE, git, run
from tencrop.commands.submit import main
from tencrop.config import Cluster, Hardware, UserError, run_path
from tencrop.config.run_config import read_written_config
from tencrop.submission import submit as submission
from tencrop.submission.batch import SEEDS, Job
from tencrop.submission.submit import RECORD, _sbatch, active_job


def submit(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(checkout, "submit.py", *words)


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
    assert manifest["result"]["status"] == "complete"
    assert manifest["sessions"][0]["code"]["revision"] == git(checkout, "rev-parse", "HEAD")
    git(checkout, "checkout", "-q", ".")
    again = submit(checkout, *words)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, f"{run_dir}: complete, not submitted")


def test_a_job_does_not_run_with_another_torch_than_that_of_its_submission(checkout, words, slurm, tmp_path):
    assert submit(checkout, *words).returncode == 0
    (packages,) = tmp_path.glob("the runs/lenet5_digits/*/code-*/packages.json")
    packages.write_text(json.dumps(json.loads(packages.read_text()) | {"torch": "0.1"}))
    ran = slurm.start(slurm.calls()[0])
    assert ran.returncode == 2 and "error: the packages are not those of the submission (torch was 0.1" in ran.stderr
    assert not list(tmp_path.glob("the runs/**/manifest.json"))


def test_several_seeds_are_an_array_in_which_each_is_a_run(checkout, words, slurm, tmp_path):
    done = submit(checkout, *words, "seed=3,1")
    assert done.returncode == 0 and "101, an array of 2 seeds" in done.stdout, done.stderr
    (call,) = slurm.calls()
    assert "--array=3,1" in call and not any(word.startswith("seed=") for word in call)
    assert {path.name.partition("-")[0] for path in tmp_path.glob("the runs/*/seed*")} == {"seed1", "seed3"}


def test_words_arrive_as_typed(checkout, words, slurm):
    odd = ["name=a b", "training.freeze=[conv1.*, 'x y']", "data.source='/with, comma'"]
    done = submit(checkout, *words, *odd)
    assert done.returncode == 0, done.stderr
    assert slurm.calls()[0][-3:] == odd


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
    "folder of one's own": (["--config-dir", "slurm"], "its files are not in the copy of the code that a job runs"),
    "table and recipe": (["table=lenet5_mnist"], "each row gives the runs and the protocol"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_at_once(case, words, slurm, tmp_path, capsys):
    more, message = REFUSED[case]
    with pytest.raises(SystemExit) as stop:
        main([*words, *more])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1, said
    assert slurm.calls() == [] and not (tmp_path / "the runs").exists()


def test_a_machine_without_sbatch_is_told(words, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "sbatch: not found; submit on a login node" in capsys.readouterr().err


def test_a_run_that_has_a_job_is_not_submitted_twice(checkout, words, slurm):
    assert submit(checkout, *words).returncode == 0
    (slurm.folder / "pending").write_text("101\n")
    done = submit(checkout, *words)
    assert done.returncode == 2 and "job 101 trains it; scancel 101 ends that job" in done.stderr
    (slurm.folder / "pending").unlink()  # it has ended
    assert submit(checkout, *words).returncode == 0 and len(slurm.calls()) == 2


def test_a_table_is_its_missing_runs_and_then_its_evaluation(checkout, words, slurm, prepared_digits, tmp_path):
    (checkout / "conf" / "errors" / "digits_of_a_test.yaml").write_text(TABLE)
    common = ["hardware=cpu", "tracker=none", f"data.root={prepared_digits}", f"runs={tmp_path}/the runs"]
    table = ["table=digits_of_a_test", *common]
    done = submit(checkout, *table)
    assert done.returncode == 0, done.stderr
    array, single, evaluation = slurm.calls()
    assert "--array=0,1" in array and array[-5:] == ["experiment=lenet5_digits", *common]
    assert single[-7:] == ["experiment=lenet5_digits", "optimizer.lr=0.01", "seed=0", *common]
    assert "--dependency=afterany:101_0:101_1:102" in evaluation and "--job-name=table-digits_of_a_test" in evaluation
    assert evaluation[-6].endswith("/slurm/evaluate.sbatch") and evaluation[-5:] == table
    # while they are queued, only the evaluation is submitted again
    (slurm.folder / "pending").write_text("101_0\n101_1\n102\n")
    done = submit(checkout, *table)
    assert done.returncode == 0 and done.stdout.count("not submitted again") == 3, done.stdout + done.stderr
    assert len(slurm.calls()) == 4 and "--dependency=afterany:101_0:101_1:102" in slurm.calls()[3]


def test_a_training_that_starts_from_another_run_waits_for_its_job(checkout, slurm, prepared_digits, tmp_path):
    """Two rows whose runs start from those of another row: all are submitted at once, the evaluation last."""
    (checkout / "conf" / "errors" / "digits_of_a_test.yaml").write_text(TABLE + CHAIN)
    common = ["hardware=cpu", "tracker=none", f"data.root={prepared_digits}", f"runs={tmp_path}/runs"]
    shown = submit(checkout, "table=digits_of_a_test", *common, "dry_run=true")
    assert shown.returncode == 0 and slurm.calls() == [] and not (tmp_path / "runs").exists(), shown.stderr
    assert f'"--dependency=afterok:<job of {tmp_path}/runs/lenet5_digits/seed1-' in shown.stdout
    done = submit(checkout, "table=digits_of_a_test", *common)
    assert done.returncode == 0, done.stderr
    *trainings, evaluation = slurm.calls()
    after, started_from = {}, {}
    for number, call in enumerate(trainings, 101):
        (name,) = [word.removeprefix("--job-name=") for word in call if word.startswith("--job-name=")]
        found = [word.removeprefix("--dependency=") for word in call if word.startswith("--dependency=")]
        after[number], started_from[number] = found, [word for word in call if "init.checkpoint" in word]
        assert ("--kill-on-invalid-dep=yes" in call) == bool(found), name
    # 101: base (two seeds), 102: slow, 103 and 104: tuned from each seed of base, 105: last from seed 0 of tuned
    assert after == {101: [], 102: [], 103: ["afterok:101_0"], 104: ["afterok:101_1"], 105: ["afterok:103"]}
    folders = {name: sorted(tmp_path.glob(f"runs/lenet5_digits/seed{name}-*")) for name in (0, 1)}
    for number, target, seed in ((103, 101, 0), (104, 101, 1), (105, 103, 0)):
        (word,) = started_from[number]
        source = Path(word.partition("=")[2])
        record = json.loads((source / RECORD).read_text())["job"]
        assert source in folders[seed] and record.partition("_")[0] == str(target)
    assert "--dependency=afterany:101_0:101_1:102:103:104:105" in evaluation
    assert "waits for   103\n" in done.stdout and not any(word == "--kill-on-invalid-dep=yes" for word in evaluation)
    # With the first job in the queue still, only what has none is submitted, and waits for it.
    (slurm.folder / "pending").write_text("101_0\n101_1\n102\n103\n")
    submit(checkout, "table=digits_of_a_test", *common)
    found = [word for call in slurm.calls()[6:-1] for word in call if word.startswith("--dependency=")]
    assert found == ["--dependency=afterok:101_1", "--dependency=afterok:103"]


OTHER_SUBMISSION = """
import sys
from pathlib import Path
from tencrop.config import Cluster, Hardware
from tencrop.submission.batch import SEEDS, Job
from tencrop.submission.submit import submit
job = Job("other", SEEDS, Path(sys.argv[1]), (), Hardware("cpu", 1, 1, 1, None), seeds=(0, 1))
submit(job, Cluster(), {SEEDS: b"# code"}, [])
"""


def test_a_refused_submission_keeps_the_snapshot_that_another_has_begun_to_use(slurm, tmp_path, monkeypatch):
    """Arrays of variants, submitted at once, share a snapshot in runs/NAME. SLURM refuses the one that wrote it."""
    job = Job("one", SEEDS, tmp_path / "runs", (), Hardware("cpu", 1, 1, 1, None), seeds=(0, 1))
    others: list[subprocess.Popen[bytes]] = []

    def refuse(_: object) -> str:
        lock = (job.folder / ".submit.lock").stat().st_ino
        others.append(other := subprocess.Popen([sys.executable, "-c", OTHER_SUBMISSION, str(job.folder)]))
        # until the other submission waits, or would have ended beside this one
        while other.poll() is None and not re.search(rf"-> POSIX .*:{lock} ", Path("/proc/locks").read_text()):
            time.sleep(0.01)
        raise UserError("refused")

    monkeypatch.setattr(submission, "_sbatch", refuse)
    with pytest.raises(UserError, match="refused"):
        submission.submit(job, Cluster(), {SEEDS: b"# code"}, [])
    assert others[0].wait(timeout=900) == 0
    ((*_, batch_file),) = slurm.calls()
    assert Path(batch_file).read_bytes() == b"# code"
    assert [path.name for path in job.folder.iterdir()] == [Path(batch_file).parents[1].name], (
        "no lock, no partial copy"
    )


@pytest.mark.parametrize("program", ["squeue", "sbatch"])
def test_a_controller_that_does_not_answer(program, composed, monkeypatch, tmp_path):
    config = composed("experiment=lenet5_digits", f"runs={tmp_path}")
    run_path(config).mkdir(parents=True)
    (run_path(config) / RECORD).write_text('{"job": "101"}')
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def hang(words, *, timeout, **_):
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(UserError, match=f"{program}: no answer within 60 s; sinfo shows"):
        active_job(config) if program == "squeue" else _sbatch(["sbatch", "job.sbatch"])

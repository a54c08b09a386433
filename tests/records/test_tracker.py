"""A killed and resumed run is one tracked run, and its curves have neither gaps nor duplicates."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tencrop.records.tracker import flattened, reason_of

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "val")
# Runs train.py and kills it, with the tracker's own processes, after the sixth row: at step 50, after the checkpoint of
# step 40.
KILLED = """
import os, runpy, signal, sys
from tencrop.training.monitors import Metrics

write = Metrics._write

def write_and_die(metrics, *arguments):
    write(metrics, *arguments)
    if metrics.num_rows == 6:
        os.killpg(0, signal.SIGKILL)

Metrics._write = write_and_die
sys.argv[:] = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


def wandb_steps(run_dir: Path) -> dict[str, list[int]]:
    """Steps by split, from the files of all sessions, read by wandb's own reader."""
    rows, run_ids = [], set()
    for path in sorted((run_dir / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        records = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
        rows += [record["history"]["item"] for record in records if record["type"] == "history"]
        run_ids |= {record["run"]["run_id"] for record in records if record["type"] == "run"}
    assert run_ids == {json.loads((run_dir / "tracking" / "run.json").read_text())["id"]}
    # wandb's own count goes on from session to session: `wandb sync` uploads all of them to one run.
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert "error_table._type" in rows[-2] and rows[-1]["report._type"] == "html-file"
    return {split: [row["trainer/global_step"] for row in rows if f"{split}/loss" in row] for split in SPLITS}


def tensorboard_steps(run_dir: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tracking")).Reload()
    assert {"configuration/text_summary", "error_table/text_summary"} <= {*events.Tags()["tensors"]}
    assert "hp_metric" not in events.Tags()["scalars"]
    epochs = [event.step for event in events.Scalars("epoch")]
    assert epochs == sorted({*epochs}), "a training row and a validation row of one step share its epoch"
    return {split: [event.step for event in events.Scalars(f"{split}/loss")] for split in SPLITS}


def mlflow_steps(run_dir: Path) -> dict[str, list[int]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir}/tracking/mlflow.db")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "FINISHED" and run.data.params["optimizer.name"] == "sgd"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"configuration.yaml", "error_table.md", "input.png", "report.html"}
    history = {split: client.get_metric_history(run.info.run_id, f"{split}/loss") for split in SPLITS}
    return {split: sorted(point.step for point in points) for split, points in history.items()}


STEPS: dict[str, Callable[[Path], dict[str, list[int]]]] = {
    "wandb": wandb_steps,
    "tensorboard": tensorboard_steps,
    "mlflow": mlflow_steps,
}


@pytest.mark.parametrize("tracker", STEPS)
def test_a_killed_and_resumed_run(tracker, prepared_digits, tmp_path):
    if tracker == "mlflow":
        pytest.importorskip("mlflow", reason="MLflow is not installed (pip install 'tencrop[mlflow]')")
    words = ["experiment=lenet5_digits", f"data.root={prepared_digits}", f"runs={tmp_path}", f"tracker={tracker}"]
    words += ["training.max_steps=60", "log_every_steps=10"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    environment |= {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "netrc"), "WANDB_MODE": "offline"}
    killed = [sys.executable, "-c", KILLED, *words]
    assert subprocess.run(killed, cwd=ROOT, env=environment, start_new_session=True).returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, env=environment, check=True)
    (run_dir,) = (tmp_path / "lenet5_digits").iterdir()
    assert STEPS[tracker](run_dir) == {"train": [10, 20, 30, 40, 50, 60], "val": [40, 60]}


def test_the_reason_of_a_failure_is_one_line_without_values():
    assert reason_of(ValueError("bad\n  url [type=url_parsing, input_value='secret']")) == "bad url"
    assert reason_of(KeyError()) == "KeyError"


def test_flattened():
    assert flattened({"a": {"b": {"c": 1}, "d": [2]}, "e": {}}) == {"a.b.c": 1, "a.d": [2], "e": {}}

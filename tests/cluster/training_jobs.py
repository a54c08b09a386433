"""A small training that is submitted to the loopback cluster, and the folder that it is submitted from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cluster.loopback import ROOT, Cluster, Job

# BatchNorm, so that the weights depend on how the running statistics are averaged. 40 steps an epoch, 200 in all; the
# jobs are interrupted between them, in the middle of an epoch.
RECIPE = [
    "name=cluster", "data=digits", "model=timm", "model.name=test_efficientnet", "model.bn_group=4",
    "image_size=32", "short_side=32", "augmentation=random_resized_crop", "training.global_batch=32",
    "training.epochs=5", "training.precision=fp32", "schedule.warmup_epochs=0", "optimizer.lr=0.01",
    "log_every_steps=5", "checkpoint_every_steps=10", "tracker=none", "hardware=cpu", "hardware.workers=1",
]  # fmt: skip
ONE, TWO = ["--nodelist=n0", "--cpus-per-task=1"], ["--nodes=2", "--cpus-per-task=1"]
RESUMED, INTERRUPTED = "resuming after step", "interrupted after step"

# Stops rank 1 of a job's first start when rank 0 is about to gather its scores, and says so in the file STOPPED.
STOP = """
import os, signal, sys, threading, time

def stop(*_, **__):
    open(os.environ["STOPPED"], "w").close()
    os.kill(os.getpid(), signal.SIGSTOP)

def plant():
    while not hasattr(sys.modules.get("tencrop.evaluation.processes"), "score_split"):
        time.sleep(0.01)
    sys.modules["torch.distributed"].all_gather = stop

if os.environ.get("SLURM_PROCID") == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    threading.Thread(target=plant, daemon=True).start()
"""


class Place:
    """The folder that a test's jobs are submitted from, and what they share."""

    def __init__(self, cluster: Cluster, folder: Path, data: Path):
        self.cluster, self.folder, self.data = cluster, folder, data
        folder.mkdir()
        python = Path(sys.executable).parent
        # Without a .venv in the checkout, the batch files take the python of the environment that submits. The nodes
        # of this cluster have no names that resolve.
        self.variables = {
            "PATH": f"{python}:{cluster.environment['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
        }

    def submit(self, file: str, *words: str, options: list[str], **variables: str) -> Job:
        path = str(ROOT / "slurm" / file)
        return self.cluster.submit(*options, path, *words, cwd=self.folder, variables=self.variables | variables)

    def train(self, *words: str, options: list[str], **variables: str) -> Job:
        return self.submit("train.sbatch", *self.words(*words), options=options, **variables)

    def lose_node_while_evaluating(self, *words: str) -> Job:
        """Evaluate on two nodes; one dies after rank 1 has scored its images, and comes back after the requeue."""
        (self.folder / "sitecustomize.py").write_text(STOP)
        path, stopped = f"{self.folder}:{self.variables['PYTHONPATH']}", self.folder / "stopped"
        job = self.submit("evaluate.sbatch", *words, options=TWO, PYTHONPATH=path, STOPPED=str(stopped))
        job.wait_until(stopped.exists, "rank 1 has scored its images")
        self.cluster.kill_node("n1")
        job.wait_until(lambda: job.states() == ["PENDING"], "the job is requeued")
        self.cluster.start_node("n1")
        job.wait()
        return job

    def words(self, *words: str) -> list[str]:
        return [*RECIPE, f"data.root='{self.data}'", *words]

    def run_here(self, program: str, *words: str) -> str:
        return self.cluster.run(sys.executable, str(ROOT / program), *words, cwd=self.folder, variables=self.variables)

    def run_dirs(self) -> list[Path]:
        return sorted(self.folder.glob("runs/cluster/*"))

    def step(self) -> int:
        """The last step in metrics.jsonl of the only run."""
        texts = [path.read_text() for path in self.folder.glob("runs/cluster/*/metrics.jsonl")]
        rows = texts[0].rpartition("\n")[0].splitlines() if texts else []  # without a row that is being written
        return json.loads(rows[-1])["step"] if rows else 0


def assert_same(run_dir: Path, reference: Path) -> None:
    """Both runs are complete, with the same weights and the same rows of metrics, but for their speed."""
    results, rows = [], []
    for folder in (run_dir, reference):
        results.append(json.loads((folder / "manifest.json").read_text())["result"])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows.append([{key: line[key] for key in line if key not in ("images_per_s", "row_digest")} for line in lines])
    assert results[0]["status"] == results[1]["status"] == "complete"
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"] and rows[0] == rows[1]

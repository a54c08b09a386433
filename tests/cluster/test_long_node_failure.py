"""A node dies or falls silent under SLURM's default SlurmdTimeout, 300 s, which the job's own watchers do not await."""

from __future__ import annotations

import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.loopback import Cluster, require_slurm
from cluster.training_jobs import RESUMED, TWO, Place


def lose_node(folder: Path, data: Path, number: signal.Signals) -> tuple[str, str]:
    """Train on two nodes, send `number` to all processes of one, bring it back after the requeue; then evaluate.

    Returns the logs of both.
    """
    with tempfile.TemporaryDirectory(prefix="slurm") as state, Cluster(Path(state), 300) as cluster:
        place = Place(cluster, folder, data)
        job = place.train("hardware.nodes=2", options=TWO)
        job.wait_until(lambda: place.step() >= 20, "step 20")
        cluster.signal_node("n1", number)
        job.wait_until(lambda: job.states() == ["PENDING"], "the job is requeued")
        cluster.kill_node("n1")
        cluster.start_node("n1")
        job.wait()
        assert int(job.detail("Restarts")) == 1
        return job.log, evaluate(place)


def evaluate(place: Place) -> str:
    """Lose a node while evaluating the run; returns the log."""
    (run_dir,) = place.run_dirs()
    (run_dir / "predictions" / "center.safetensors").unlink()
    words = [f"checkpoint={run_dir}/checkpoints/last.ckpt", "hardware=cpu", "hardware.nodes=2", "hardware.workers=1"]
    return place.lose_node_while_evaluating(*words).log


@pytest.mark.long
def test_the_surviving_rank_has_the_job_requeued(prepared_digits, tmp_path):
    require_slurm()
    numbers = {"killed": signal.SIGKILL, "silent": signal.SIGSTOP}
    with ThreadPoolExecutor() as executor:
        logs = {
            name: executor.submit(lose_node, tmp_path / name, prepared_digits, number)
            for name, number in numbers.items()
        }
    (killed, evaluated), (silent, _) = logs["killed"].result(), logs["silent"].result()
    assert "rank 0: a connection to another rank was lost, its process or node has died" in killed
    assert "rank 0: rank 1 on n1 has not answered for 60 s; interrupted; the same command continues" in silent
    for log in (killed, silent):
        assert "Exited with exit code 75" in log and "requeueing the job, which resumes from its checkpoint" in log
        assert RESUMED in log
    assert "rank 0: a connection to another rank was lost, its process or node has died" in evaluated
    assert "requeueing the job, which evaluates again; attempt 1 of 3" in evaluated and "top-1 %" in evaluated

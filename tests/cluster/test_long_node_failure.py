"""A node dies or falls silent under SLURM's default SlurmdTimeout, 300 s, which the job's own watchers do not await."""

from __future__ import annotations

import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.conftest import refuse_without_slurm
from cluster.loopback import Cluster
from cluster.training_jobs import RESUMED, TWO, Place


def lose_node(folder: Path, data: Path, number: signal.Signals) -> str:
    """Train on two nodes, send `number` to all processes of one, bring it back after the requeue; returns the log."""
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
        return job.log


@pytest.mark.long
def test_the_surviving_rank_has_the_job_requeued(prepared_digits, tmp_path):
    refuse_without_slurm()
    numbers = {"killed": signal.SIGKILL, "silent": signal.SIGSTOP}
    with ThreadPoolExecutor() as executor:
        logs = {
            name: executor.submit(lose_node, tmp_path / name, prepared_digits, number)
            for name, number in numbers.items()
        }
    killed, silent = logs["killed"].result(), logs["silent"].result()
    assert "rank 0: a connection to another rank was lost, its process or node has died" in killed
    assert "rank 0: rank 1 on n1 has not answered for 60 s; interrupted; the same command continues" in silent
    for log in (killed, silent):
        assert "Exited with exit code 75" in log and "requeueing the job, which resumes from its checkpoint" in log
        assert RESUMED in log

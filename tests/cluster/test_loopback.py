"""The loopback cluster itself: where it is required, and that nothing of it remains."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from cluster import loopback
from cluster.loopback import Cluster, require_slurm


def test_continuous_integration_does_not_skip(monkeypatch):
    monkeypatch.setattr(loopback, "PROGRAMS", ("slurmd-that-is-not-there",))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install slurm-wlm munge"):
        require_slurm()
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install slurm-wlm munge"):
        require_slurm()


def test_nothing_remains_after_a_failure(monkeypatch):
    """Neither the daemons nor a running job; and a job of another cluster, which the tests run in, does not matter."""
    require_slurm()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/of_another_cluster.conf")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    with pytest.raises(ZeroDivisionError), Cluster(folder, 300) as cluster:
        job = cluster.submit("--wrap", "sleep 1000", cwd=folder)
        job.wait_until(lambda: cluster.processes_with(f"SLURM_JOB_ID={job.number}"), "it runs")
        daemons = [daemon.pid for daemon in cluster.daemons.values()]
        raise ZeroDivisionError
    shutil.rmtree(folder)
    assert not cluster.processes_with() and not any(os.path.exists(f"/proc/{daemon}") for daemon in daemons)

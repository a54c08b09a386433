"""The loopback cluster that the tests of slurm/ share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.loopback import Cluster, missing_programs

# SLURM's default is 300 s, which `-m long` tests. It is the time after which a node that does not answer is down.
SLURMD_TIMEOUT_S = 20


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes. Where SLURM is not installed, the test is skipped, or fails with CI=1."""
    refuse_without_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, Cluster(Path(folder), SLURMD_TIMEOUT_S) as running:
        yield running


def refuse_without_slurm() -> None:
    if missing := missing_programs():
        reason = f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

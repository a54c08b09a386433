"""The loopback cluster that the tests of slurm/ share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.loopback import Cluster, require_slurm

# The time after which a node that does not answer is down. SLURM's default is 300 s (test_long_node_failure.py).
SLURMD_TIMEOUT_S = 20


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    require_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, Cluster(Path(folder), SLURMD_TIMEOUT_S) as running:
        yield running

"""Cores granted: those allowed, less where a control group of either version has a quota."""

import os
from pathlib import Path

import pytest

from tencrop.config import num_threads
from tencrop.config.cores import num_granted_cores

PERIOD = "100000\n"


@pytest.fixture(autouse=True)
def nine_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree as below /sys/fs/cgroup, and the file that names this process's groups."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        (folder / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mount" / name).write_text(content)
    return folder / "mount", folder / "own"


V1 = "4:memory:/x\n2:cpu,cpuacct:/docker/1f\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 9),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 9),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ("0::/../../host\n", {"cpu.max": "400000 100000\n"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": PERIOD}, 2),
        (V1, {"cpu/docker/1f/cpu.cfs_quota_us": "50000\n", "cpu/docker/1f/cpu.cfs_period_us": "10000\n"}, 5),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": PERIOD}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": PERIOD}, 9),
        (V1, {"cpuacct/cpu.cfs_quota_us": "100000\n", "cpuacct/cpu.cfs_period_us": PERIOD}, 9),
        ("", {}, 9),
    ],
)
def test_the_smallest_quota_of_all_ancestors_applies(tmp_path, own, files, expected):
    assert num_granted_cores(*groups(tmp_path, own, files)) == expected


def test_without_control_groups_the_allowed_cores_count(tmp_path):
    assert num_granted_cores(tmp_path / "none", tmp_path / "none") == 9


def test_workers_auto_share_the_quota(tmp_path, monkeypatch):
    mount, own = groups(tmp_path, "0::/\n", {"cpu.max": "600000 100000\n"})
    monkeypatch.setattr("tencrop.config.batches.num_granted_cores", lambda: num_granted_cores(mount, own))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert [num_threads("auto", num) for num in (1, 2, 8)] == [6, 3, 1] and num_threads(7) == 7

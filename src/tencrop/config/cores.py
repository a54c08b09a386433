"""Counts the CPU cores that this process may use: its affinity mask, limited by the quotas of its control groups.

`docker --cpus` and Kubernetes' limits set a cgroup quota, which neither os.cpu_count() nor the affinity mask shows: in
a container limited to 4 cores on a machine of 128, both report 128.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def num_granted_cores(groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """Number of cores, at least 1. Rounds down: with more threads than quota, all of them stall in every period.

    groups: mount point of the control groups; own: the file that lists the control groups of this process.
    """
    num_allowed = len(os.sched_getaffinity(0))
    return max(1, int(min([num_allowed, *_quotas(groups, own)])))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """Quotas, in cores, of this process's control groups and of all their ancestors. The smallest one applies."""
    for line in _text(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2, beside version 1 on hybrid systems
            for folder in _upwards(groups, path):
                yield from _quota(*_text(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            # Version 1 mounts one hierarchy per set of controllers: /sys/fs/cgroup/cpu, or cpu,cpuacct.
            root = next((groups / name for name in ("cpu", controllers) if (groups / name).is_dir()), groups)
            for folder in _upwards(root, path):
                yield from _quota(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of a control group, then its ancestors up to the root.

    In a container the path may be the host's and not exist here; the root is then the container's own group.
    """
    folder = root / path.lstrip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _quota(*words: str) -> list[float]:
    """Quota divided by period, both in microseconds; empty if unlimited ("max" in version 2, -1 in version 1)."""
    if len(words) == 2 and all(word.strip().isdecimal() for word in words) and int(words[1]):
        return [int(words[0]) / int(words[1])]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

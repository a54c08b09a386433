"""How many cores this process may use: those it may run on, and no more than its control groups let it use.

Called by batches.py. `docker --cpus` and Kubernetes' limits set a quota, which the set of allowed cores does not show.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def num_granted_cores(groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """At least 1. A fraction of a core is cut off: threads beyond the quota wait for the rest of each period.

    groups: where the control groups are mounted; own: the file that names those of this process.
    """
    num_allowed = len(os.sched_getaffinity(0))
    return max(1, int(min([num_allowed, *_quotas(groups, own)])))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The quotas, in cores, of this process's control groups and of all groups above them; each of them binds."""
    for line in _text(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2, beside version 1 on hybrid systems
            for folder in _upwards(groups, path):
                yield from _quota(*_text(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            # the mount is named for the controller; distributions link or rename it
            root = next((groups / name for name in ("cpu", controllers) if (groups / name).is_dir()), groups)
            for folder in _upwards(root, path):
                yield from _quota(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of a control group and those above it. In a container it may name the host's folder, which is not
    there; the root is then the container's own group."""
    folder = root / path.lstrip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _quota(*words: str) -> list[float]:
    """Quota by period, both in microseconds; none where it is "max" (version 2), -1 (version 1) or not there."""
    if len(words) == 2 and all(word.strip().isdecimal() for word in words) and int(words[1]):
        return [int(words[0]) / int(words[1])]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

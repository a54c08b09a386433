"""Limits of the system that stop a training late: open files, locked memory, shared memory."""

from __future__ import annotations

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from tencrop.doctor.finding import Finding, error, ok, warning
from tencrop.progress import format_bytes

INFINIBAND = Path("/sys/class/infiniband")
SHARED = Path("/dev/shm")
# A rank alone opens about 100 files: libraries, stores, logs, sockets. NCCL adds sockets and pipes for each peer and
# channel, and data.loader=torch a descriptor for every tensor on its way from a worker.
FEW_OPEN_FILES, ENOUGH_OPEN_FILES = 256, 4096
# InfiniBand registers its buffers as locked memory: NCCL's take 4 MiB for each of up to 32 channels and for each peer.
# With the usual limits of 64 KiB and 8 MiB, NCCL fails at its first collective with "ibv_reg_mr failed".
FEW_LOCKED_BYTES = 1 << 30
# NCCL exchanges data of ranks on one node through /dev/shm. NVIDIA's documentation asks for 1 GB in containers; Docker
# gives 64 MB, with which NCCL fails ("Error while creating shared memory segment").
FEW_SHARED_BYTES, ENOUGH_SHARED_BYTES = 64 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """The limits of this process; locked_bytes is None if unlimited, free_shared_bytes if there is no /dev/shm."""

    open_files: int
    locked_bytes: int | None
    free_shared_bytes: int | None
    has_infiniband: bool


def read_limits() -> Limits:
    # The soft limits, here and below: they are what fails, and nothing in training raises them to the hard ones.
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return Limits(
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_bytes=None if locked == resource.RLIM_INFINITY else locked,
        # Free and not total: segments of killed jobs stay in /dev/shm until someone removes them.
        free_shared_bytes=shutil.disk_usage(SHARED).free if SHARED.is_dir() else None,
        # The folder exists wherever the kernel module is loaded, also without a card.
        has_infiniband=INFINIBAND.is_dir() and any(INFINIBAND.iterdir()),
    )


def judge_limits(limits: Limits, *, num_local_ranks: int, is_gpu: bool, loader: str) -> list[Finding]:
    """num_local_ranks: processes on this node; is_gpu: they communicate through NCCL; loader: data.loader."""
    return [
        _open_files(limits.open_files),
        _locked_memory(limits.locked_bytes, needed=limits.has_infiniband and is_gpu),
        # torch's workers hand over every batch through /dev/shm, on a single rank too.
        _shared_memory(limits.free_shared_bytes, needed=(is_gpu and num_local_ranks > 1) or loader == "torch"),
    ]


def _open_files(limit: int) -> Finding:
    text = f"at most {limit:,} a process"
    remedy = f"ulimit -n {ENOUGH_OPEN_FILES * 16} in the batch file, or LimitNOFILE= of slurmd"
    if limit < FEW_OPEN_FILES:
        return error("open files", text, remedy)
    return warning("open files", text, remedy) if limit < ENOUGH_OPEN_FILES else ok("open files", text)


def _locked_memory(limit: int | None, *, needed: bool) -> Finding:
    text = "unlimited" if limit is None else f"at most {format_bytes(limit)}"
    if limit is None or not needed:
        return ok("locked memory", text + ("" if needed else ", not needed without InfiniBand"))
    remedy = "ulimit -l unlimited; under SLURM, LimitMEMLOCK=infinity of slurmd"
    # Any limit gets at least a warning: the need grows with peers and channels, so no number suffices for all jobs.
    is_few = limit < FEW_LOCKED_BYTES
    return (error if is_few else warning)("locked memory", f"{text}, and InfiniBand registers memory", remedy)


def _shared_memory(free: int | None, *, needed: bool) -> Finding:
    text = "there is no /dev/shm" if free is None else f"{format_bytes(free)} free in /dev/shm"
    if not needed:
        return ok("shared memory", f"{text}, not needed here")
    remedy = "docker run --shm-size=1g, mount -o remount,size=1g /dev/shm, or remove what fills it"
    if free is None or free < FEW_SHARED_BYTES:
        return error("shared memory", text, remedy)
    return warning("shared memory", text, remedy) if free < ENOUGH_SHARED_BYTES else ok("shared memory", text)

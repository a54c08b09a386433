"""Read speed of the prepared data in random order, as training reads it, and write speed of the runs folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tencrop.config.writable import check_writable
from tencrop.console import rate
from tencrop.data.store.manifest import Split
from tencrop.doctor.finding import Finding, error, ok, warning
from tencrop.progress import format_bytes

# The loader asks the kernel for two batches ahead, so many reads are under way at once.
READ_THREADS, MAX_SAMPLES, MAX_READ_S = 32, 4096, 3.0
WRITTEN_BYTES, BLOCK_BYTES = 64 << 20, 1 << 20
CHECKPOINT_BYTES = 8 * 25_557_032  # ResNet-50's weights and momentum in float32
# Training waits while a checkpoint is written, usually once an epoch: ten seconds are felt.
SLOW_CHECKPOINT_S = 10.0
# After SIGUSR1 the ranks have the two minutes of `srun --wait=120` in slurm/train.sbatch.
TOO_SLOW_CHECKPOINT_S = 120.0
# last.ckpt, previous.ckpt and the one being written, and as much again for best.ckpt, scores and the tracker
ROOM_BYTES = 6 * CHECKPOINT_BYTES
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Reads:
    """Reads of single samples in random order, from the disk and not from the page cache where the system allows."""

    images_per_s: float
    bytes_per_s: float
    store_bytes: int  # of the whole split


def measure_reads(split: Split) -> Reads:
    """Read samples for up to MAX_READ_S. Raises OSError if the store cannot be read."""
    beton = split.beton
    number = min(split.num_samples, MAX_SAMPLES)
    # Without replacement: the second read of a sample would come from the page cache.
    chosen = np.random.default_rng(0).choice(split.num_samples, number, replace=False)
    descriptor = os.open(beton.path, os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.perf_counter() + MAX_READ_S

    def read(sample: int) -> int:
        if time.perf_counter() > deadline:
            # Not an exception: thousands of samples are queued in the pool, and each of them ends here at once.
            return 0
        # pread has no file position, so the threads can share a descriptor, and it releases the GIL.
        return len(os.pread(descriptor, int(beton.payload_bytes[sample]), int(beton.pointers[sample])))

    try:
        # Drops these pages from the page cache: otherwise memory would be measured.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with ThreadPoolExecutor(READ_THREADS) as pool:
            start = time.perf_counter()
            sizes = [size for size in pool.map(read, chosen) if size]
            seconds = time.perf_counter() - start
    finally:
        os.close(descriptor)
    return Reads(len(sizes) / seconds, sum(sizes) / seconds, beton.path.stat().st_size)


def available_memory(meminfo: Path = MEMINFO) -> int:
    """Bytes that the page cache can grow to; 0 if not known."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.M) if meminfo.is_file() else None
    return int(found[1]) * 1024 if found else 0


def judge_reads(reads: Reads, *, loader_images_per_s: float | None, memory_bytes: int) -> list[Finding]:
    """loader_images_per_s: what the loaders of a node decode, None if not measured."""
    text = f"{rate(reads.images_per_s)}, {format_bytes(reads.bytes_per_s)}/s in random order"
    if loader_images_per_s is None or reads.images_per_s >= loader_images_per_s:
        return [ok("data folder", text)]
    text += f", and the loader decodes {rate(loader_images_per_s)}"
    if reads.store_bytes < memory_bytes:
        return [ok("data folder", f"{text}; the {format_bytes(reads.store_bytes)} fit into memory after one epoch")]
    remedy = "copy the data to the node's own disk (data.stage=DIR), or store smaller images (data.store.short_side)"
    return [warning("data folder", f"{text}: training would wait for the disk", remedy)]


def measure_write(folder: Path) -> float:
    """Bytes per second to a new file in the nearest existing ancestor of `folder`, fsync included; removes the file."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    # Random bytes: a file system that compresses would store zeros in no time.
    block, path = os.urandom(BLOCK_BYTES), place / f".tencrop-{os.getpid()}-{secrets.token_hex(4)}"
    start = time.perf_counter()
    try:
        with open(path, "xb", buffering=0) as file:
            for _ in range(WRITTEN_BYTES // BLOCK_BYTES):
                file.write(block)
            # Without it, the speed of memory would be measured. Checkpoints are synced as well.
            os.fsync(file.fileno())
        return WRITTEN_BYTES / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def examine_runs(runs: Path) -> list[Finding]:
    """Raises UserError or OSError if nothing can be written there."""
    check_writable(runs / "checkpoint", remedy="make room, or name another folder with runs=DIR")
    place = next(parent for parent in (runs, *runs.absolute().parents) if parent.is_dir())
    disk = shutil.disk_usage(place)
    # Some network mounts report 0 of 0 bytes. A disk with less than the trial file is judged without writing it.
    free = disk.free if disk.total else None
    bytes_per_s = None if free is not None and free < 2 * WRITTEN_BYTES else measure_write(runs)
    return judge_runs(bytes_per_s, free)


def judge_runs(bytes_per_s: float | None, free: int | None) -> list[Finding]:
    """bytes_per_s: of writing, None if there was no room to measure it; free: bytes, None if not known."""
    left = "free space not known" if free is None else f"{format_bytes(free)} free"
    if bytes_per_s is None or (free is not None and free < ROOM_BYTES):
        text = f"{left}, and a run of ResNet-50 needs about {format_bytes(ROOM_BYTES)}"
        return [error("runs folder", text, "make room, or name another folder with runs=DIR")]
    seconds = CHECKPOINT_BYTES / bytes_per_s
    text = f"{format_bytes(bytes_per_s)}/s written, {seconds:.2g} s for a checkpoint of ResNet-50; {left}"
    remedy = "name a folder on a faster disk with runs=DIR, or write fewer checkpoints (checkpoint_every_steps=null)"
    if seconds > TOO_SLOW_CHECKPOINT_S:
        return [error("runs folder", f"{text}: too slow for the end of a job", remedy)]
    return [warning("runs folder", text, remedy)] if seconds > SLOW_CHECKPOINT_S else [ok("runs folder", text)]

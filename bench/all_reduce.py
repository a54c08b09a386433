"""Predicted and measured time of an all-reduce, for the model of python -m tencrop.planning: gloo on this machine.

python bench/all_reduce.py          1, 2 and 4 processes, 64 kB to 100 MB
Bandwidth and latency are fitted to two processes; four are predicted from them. Two predictions: "own links" gives each
process the fitted bandwidth, as a network does; "shared" lets all processes of the machine share what two of them
reached together, since they copy through the same cores and memory.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tencrop.planning.scaling import all_reduce_seconds
from tencrop.text_tables import aligned

SIZES = (1 << 16, 1 << 20, 1 << 23, 1 << 25, 4 * 25_557_032)  # bytes; the last is ResNet-50's gradients
RANKS = (1, 2, 4)
NUM_WARM_UP, NUM_ROUNDS = 2, 9


def measure(rank: int, num_ranks: int, folder: str) -> None:
    """Rank 0 writes the median seconds for each of SIZES into `folder`."""
    torch.set_num_threads(1)
    # Through the loopback device, also where the host's name resolves to nothing.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    medians = []
    for size in SIZES:
        values, seconds = torch.zeros(size // 4), []
        for _ in range(NUM_WARM_UP + NUM_ROUNDS):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds[NUM_WARM_UP:]))
    if rank == 0:
        (Path(folder) / "seconds").write_text(" ".join(map(str, medians)))
    dist.destroy_process_group()


def measured(num_ranks: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(num_ranks, folder), nprocs=num_ranks)
        return [float(word) for word in (Path(folder) / "seconds").read_text().split()]


def fit(seconds: Sequence[float]) -> tuple[float, float]:
    """(bytes/s, seconds of latency) from the largest and the smallest size of two processes."""
    # The ring of two sends two messages of half the bytes: seconds = bytes / bandwidth + 2 latency.
    bytes_per_s = (SIZES[-1] - SIZES[0]) / (seconds[-1] - seconds[0])
    return bytes_per_s, max(0.0, seconds[0] - SIZES[0] / bytes_per_s) / 2


def main() -> None:
    times = {num_ranks: measured(num_ranks) for num_ranks in RANKS}
    bytes_per_s, latency_s = fit(times[2])
    print(f"fitted to 2 processes: {bytes_per_s / 1e9:.3g} GB/s, {1e6 * latency_s:.0f} us; {os.cpu_count()} cores")
    rows: list[tuple[str, ...]] = [("processes", "bytes", "measured", "own links", "ratio", "shared", "ratio")]
    for num_ranks in RANKS:
        for size, seconds in zip(SIZES, times[num_ranks], strict=True):
            own = all_reduce_seconds(size, num_ranks, bytes_per_s=bytes_per_s, latency_s=latency_s)
            share = bytes_per_s * min(1, 2 / num_ranks)
            shared = all_reduce_seconds(size, num_ranks, bytes_per_s=share, latency_s=latency_s)
            cells = [
                f"{1000 * own:.2f} ms",
                f"{own / seconds:.2f}",
                f"{1000 * shared:.2f} ms",
                f"{shared / seconds:.2f}",
            ]
            rows.append((str(num_ranks), f"{size:,}", f"{1000 * seconds:.2f} ms", *cells))
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()

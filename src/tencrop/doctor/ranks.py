"""Checks that need several processes: the bandwidth of all-reduce, and the difference between the nodes' clocks."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from tencrop.config.launcher import launched
from tencrop.distributed.cluster import cluster_environment
from tencrop.doctor.finding import Finding, error, ok, warning

# The float32 gradients of ResNet-50, which DDP all-reduces in every step.
GRADIENT_BYTES = 4 * 25_557_032
WARM_UP, ROUNDS = 2, 5
# The all-reduce overlaps with the backward pass, which takes a fast GPU about 50 ms for 256 images: the 102 MB then
# need 2 GB/s. A GPU has 32 to 64 images in an 8-GPU recipe, hence 8 GB/s, which PCIe 3.0 x16 exceeds (12 GB/s) and
# which 10 Gb/s Ethernet (1.2 GB/s) or NCCL over sockets does not reach.
SLOW_GPU_BYTES_PER_S = 8e9
# On CPUs a step takes seconds, so only a network below half of gigabit Ethernet gets a warning. Two ranks that share
# two busy cores still reach 0.15 GB/s (python doctor.py hardware=ddp_cpu2).
SLOW_CPU_BYTES_PER_S = 5e7
# torch waits for 30 minutes (gloo) or 10 (NCCL), too long to learn that a port is closed. But a rank with few cores may
# need a minute more than another for its loader and its first steps.
TIMEOUT = datetime.timedelta(minutes=5)
# Below a second, times in logs and trackers of two nodes can be compared. At 300 s, munge rejects SLURM's messages.
CLOCKS_DIFFER_S, CLOCKS_TOO_FAR_S = 1.0, 300.0
CLOCK_ROUNDS = 5


@contextlib.contextmanager
def process_group(num_ranks: int) -> Iterator[None]:
    """Connect the ranks that `launch_ranks` started in a gloo process group; does nothing for a single process."""
    if num_ranks == 1:
        yield
        return
    environment = cluster_environment()
    # Without srun or torchrun, this program started all ranks on one machine, so the local rank is the global one.
    rank = int(os.environ["LOCAL_RANK"]) if launched() is None else environment.global_rank()
    address = f"tcp://{environment.main_address}:{environment.main_port}"
    # gloo on GPUs too: gather sends Python objects, which over NCCL would go through the GPU's memory.
    dist.init_process_group("gloo", address, rank=rank, world_size=num_ranks, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def measure_all_reduce(device: torch.device) -> tuple[float, float] | None:
    """(seconds, relative error of the sum) of an all-reduce of GRADIENT_BYTES over all ranks; None for one process."""
    if not dist.is_initialized():
        return None
    num_ranks = dist.get_world_size()
    # A group of its own, so that the clocks below can be compared without NCCL.
    group: Any = dist.new_group(backend="nccl", timeout=TIMEOUT) if device.type == "cuda" else None
    # Rank r contributes r + 1: with equal values, a rank counted twice in place of another would go unnoticed.
    expected = num_ranks * (num_ranks + 1) / 2
    for number in range(WARM_UP + ROUNDS):
        if number == WARM_UP:
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # else what is left of the warm-up would be timed
            start = time.perf_counter()
        # A new tensor in each round, because all_reduce works in place and would add up sums. Filling it is timed too,
        # which is little beside the transfer.
        values = torch.full((GRADIENT_BYTES // 4,), float(dist.get_rank() + 1), device=device)
        dist.all_reduce(values, group=group)
    worst = (values - expected).abs().max().item() / expected  # waits for the device
    return (time.perf_counter() - start) / ROUNDS, worst


def judge_all_reduce(measured: tuple[float, float] | None, *, num_ranks: int, is_gpu: bool) -> list[Finding]:
    """Findings about the result of `measure_all_reduce`.

    The bandwidth is the bus bandwidth of nccl-tests: each of n ranks sends 2 (n - 1) / n bytes for each byte of the
    tensor. Unlike bytes of the tensor per second, it can be compared between numbers of ranks.
    """
    if measured is None:
        return [ok("all-reduce", "one process, which needs none")]
    seconds, worst = measured
    # No tolerance: whole numbers this small are exact in float32, in whatever order they are added.
    if worst > 0:
        text = f"the sum over {num_ranks} ranks is wrong by {worst:.1%}"
        return [error("all-reduce", text, "run nccl-tests on these nodes, and leave out the one that fails")]
    bytes_per_s = 2 * (num_ranks - 1) / num_ranks * GRADIENT_BYTES / seconds
    backend = "NCCL" if is_gpu else "gloo"
    text = (
        f"{bytes_per_s / 1e9:.3g} GB/s between {num_ranks} ranks ({backend}):"
        f" {1000 * seconds:,.0f} ms for ResNet-50's gradients ({GRADIENT_BYTES / 1e6:.0f} MB)"
    )
    if bytes_per_s >= (SLOW_GPU_BYTES_PER_S if is_gpu else SLOW_CPU_BYTES_PER_S):
        return [ok("all-reduce", text)]
    remedy = "NCCL_DEBUG=INFO shows the path that NCCL takes" if is_gpu else "name the fast network: GLOO_SOCKET_IFNAME"
    return [warning("all-reduce", text, f"{remedy}; choose nodes close to each other, or fewer")]


def measure_clocks(host: str) -> dict[str, float]:
    """The clock of each host in seconds, relative to the first one; empty for one process.

    All ranks read their clock after a barrier, which they leave at slightly different times. The round with the
    smallest differences is returned, because it is the least disturbed by that.
    """
    rounds = []
    for _ in range(CLOCK_ROUNDS if dist.is_initialized() else 0):
        # Without it, the clocks would be read as far apart in time as the ranks arrive here.
        dist.barrier()
        # The wall clock, which is what logs show; perf_counter starts anywhere on each node.
        clocks = dict(gather((host, time.time())))
        first = next(iter(clocks.values()))
        rounds.append({name: clock - first for name, clock in clocks.items()})
    return min(rounds, key=lambda clocks: max(clocks.values()) - min(clocks.values()), default={})


def judge_clocks(clocks: Mapping[str, float]) -> list[Finding]:
    """Findings about the result of `measure_clocks`."""
    if len(clocks) < 2:
        return [ok("clocks", "one node")]
    low, high = min(clocks, key=clocks.__getitem__), max(clocks, key=clocks.__getitem__)
    seconds = clocks[high] - clocks[low]
    text = f"{seconds:.3g} s between {low} and {high}"
    remedy = "have chrony or ntpd started on the nodes (timedatectl shows the state)"
    if seconds >= CLOCKS_TOO_FAR_S:
        return [error("clocks", text, remedy)]
    return [warning("clocks", text, remedy)] if seconds >= CLOCKS_DIFFER_S else [ok("clocks", text)]

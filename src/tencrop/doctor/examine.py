"""Runs all checks, on every rank that was started, and gathers the findings on the first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tencrop.config import Config, Data, UserError, accelerator_of, check_data, check_store, derive_batches
from tencrop.config.cores import num_granted_cores
from tencrop.config.launcher import RANK_OF, is_first_process, launched
from tencrop.config.writable import check_writable
from tencrop.data.preparation.stage import check_room, stage_folder
from tencrop.data.sources.imagenet_test_sets import check_has_training_split
from tencrop.data.store.manifest import open_split, read_manifest
from tencrop.distributed.cluster import cluster_environment
from tencrop.distributed.launch import launch_ranks
from tencrop.distributed.liveness import reason_of
from tencrop.doctor.finding import Finding, attempt, error, merged, ok
from tencrop.doctor.limits import judge_limits, read_limits
from tencrop.doctor.loading import device_images_per_s, judge_loader, loader_images_per_s
from tencrop.doctor.ranks import (
    gather,
    judge_all_reduce,
    judge_clocks,
    measure_all_reduce,
    measure_clocks,
    process_group,
)
from tencrop.doctor.slurm import judge_launch, judge_slurm, node_name, slurm_variables
from tencrop.doctor.software import judge_gpus, judge_software, read_gpus
from tencrop.doctor.storage import available_memory, examine_runs, judge_reads, measure_reads
from tencrop.progress import format_bytes

REMEDY = "see the lines of all ranks and nodes; ping and nc -l between the nodes show a closed port"


def examine(config: Config) -> list[Finding]:
    """All findings on the first process, an empty list on the others. Takes about a minute.

    A problem becomes an error finding, and the checks after it still run if they can. If the ranks cannot communicate,
    each process returns what it has found alone.
    """
    local = judge_launch(config.hardware)
    found = launched()
    num_ranks = 1 if local[0].state == "error" else config.hardware.devices
    # Under a launcher, what it started and not what the configuration asks for: a collective waits for every
    # rank that exists.
    if found is not None:
        num_ranks = found.num_processes
    local_rank = cluster_environment().local_rank()
    if local_rank == 0:
        local += _examine_node(config)
    else:
        local = []  # a rank repeats what the first one of its node says
    try:
        with launch_ranks(num_ranks):
            by_host = _examine_and_gather(config, local, num_ranks=num_ranks, local_rank=local_rank)
    except (UserError, RuntimeError) as problem:  # some did not come
        by_host = _alone(local, problem)
    return [] if by_host is None else merged(by_host)


def _examine_and_gather(
    config: Config, local: list[Finding], *, num_ranks: int, local_rank: int
) -> dict[str, list[Finding]] | None:
    """The findings of all ranks, by node, on the first one; None on the others.

    If a collective operation fails, on each rank its own findings. Catches the error here and not around launch_ranks,
    whose watcher would end the process: a lost connection is the death of a node for a training.
    """
    try:
        with process_group(num_ranks):
            local += _examine_together(config, local_rank)
            by_host: dict[str, list[Finding]] = {}
            for host, findings in gather((node_name(), local)):
                by_host.setdefault(host, []).extend(findings)
    except RuntimeError as problem:  # torch's
        return _alone(local, problem)
    return by_host if is_first_process() else None


def _alone(local: list[Finding], problem: UserError | RuntimeError) -> dict[str, list[Finding]]:
    """What this process has found without the others, and why."""
    rank = "" if (found := launched()) is None else f"rank {os.environ[RANK_OF[found.launcher]]}: "
    reason = str(problem) if isinstance(problem, UserError) else reason_of(problem)
    return {node_name(): [*local, error("ranks", rank + reason, REMEDY)]}


def _examine_node(config: Config) -> list[Finding]:
    """What one process of a node finds alone."""
    hardware, is_gpu = config.hardware, accelerator_of(config.hardware) == "gpu"
    return [
        *judge_software(),
        *judge_gpus(read_gpus(), hardware),
        *judge_slurm(slurm_variables(), hardware, num_cores=num_granted_cores()),
        *judge_limits(read_limits(), num_local_ranks=hardware.devices, is_gpu=is_gpu, loader=config.data.loader),
        *(_examine_job(config) if is_first_process() else []),
    ]


def _examine_job(config: Config) -> list[Finding]:
    """What only the first process of a job does: write the runs folder, and track."""
    from tencrop.doctor.tracker import examine_tracker  # imports wandb, which takes a second

    return [
        *attempt("runs folder", lambda: examine_runs(Path(config.runs))),
        *attempt("tracker", lambda: examine_tracker(config.tracker)),
    ]


def _examine_together(config: Config, local_rank: int) -> list[Finding]:
    """What all ranks measure at the same time. Every rank makes the same calls of `gather`, whatever it finds."""
    is_gpu = accelerator_of(config.hardware) == "gpu" and torch.cuda.is_available()
    # min: a GPU that is missing is a finding of judge_gpus already, and set_device would raise for it.
    device = torch.device("cuda", min(local_rank, torch.cuda.device_count() - 1)) if is_gpu else torch.device("cpu")
    if is_gpu:
        torch.cuda.set_device(device)
    # From the process group: hardware.devices is another number where judge_launch has found an error.
    num_ranks, host = len(gather(None)), node_name()
    together = [
        *judge_all_reduce(measure_all_reduce(device), num_ranks=num_ranks, is_gpu=is_gpu),
        *judge_clocks(measure_clocks(host)),
    ]
    rates: list[tuple[float, float]] = []
    # A rank that fails here still reaches the gather below. If it left out that collective, the others would wait
    # for it until TIMEOUT.
    problems = attempt("loader", lambda: rates.append(_rates(config, device)) or [])  # type: ignore[func-returns-value]
    of_node: list[tuple[float, float]] = [
        rate for other, theirs in gather((host, rates)) if other == host for rate in theirs
    ]
    if local_rank > 0:
        return problems
    found = together if is_first_process() else []
    # All ranks of a node measure at once and share its cores and its disk, so their rates add up.
    per_node = sum(loader for loader, _ in of_node)
    if not problems:
        slowest, name = min(rate for _, rate in of_node), "a GPU" if is_gpu else "the CPU"
        found = [*found, *judge_loader(per_node, slowest, config=config, device=name)]
    return [*found, *problems, *attempt("data folder", lambda: _examine_reads(config, per_node or None))]


def _rates(config: Config, device: torch.device) -> tuple[float, float]:
    """Images per second of this process's loader, and of its device."""
    # The checks of train.py, so that its messages come now and not at the start of the training.
    check_has_training_split(config.data.name)
    batches = derive_batches(config)
    manifest: dict[str, Any] = read_manifest(config.data.root, config.data.name)
    check_data(config, manifest)
    check_store(config, manifest)
    # One after the other: at the same time, each would measure how it is slowed down by the other.
    loader = loader_images_per_s(config, batches)
    of_device = device_images_per_s(config, batches, num_classes=len(manifest["classes"]), device=device)
    return loader, of_device


def _examine_stage(data: Data, manifest: dict[str, Any]) -> list[Finding]:
    """Raises UserError if the data cannot be copied to data.stage."""
    folder = stage_folder(data.stage or "", manifest)
    check_writable(folder / "manifest.json", remedy="name another folder with data.stage=DIR")
    num_bytes = check_room(Path(data.root), folder, manifest, list(manifest["splits"]))
    return [ok("stage folder", f"{folder.parent} has room for the {format_bytes(num_bytes)} of the data")]


def _examine_reads(config: Config, loader_per_s: float | None) -> list[Finding]:
    manifest: dict[str, Any] = read_manifest(config.data.root, config.data.name)
    split = open_split(config.data.root, next(iter(manifest["splits"])), data=config.data.name)
    # In a job, --mem (in MiB) bounds the page cache too, because the cgroup counts it; the node's memory does not.
    memory = int(os.environ.get("SLURM_MEM_PER_NODE") or 0) * 2**20 or available_memory()
    stage = attempt("stage folder", lambda: _examine_stage(config.data, manifest)) if config.data.stage else []
    return stage + judge_reads(measure_reads(split), loader_images_per_s=loader_per_s, memory_bytes=memory)

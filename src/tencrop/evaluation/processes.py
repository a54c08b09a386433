"""Score every image of the evaluation split exactly once, on one or several processes.

Each process scores a contiguous part of the split; the parts are gathered on the first process.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tencrop.config import UserError, num_threads
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.launcher import launched
from tencrop.distributed.cluster import cluster_environment
from tencrop.distributed.liveness import watch_launched
from tencrop.distributed.rendezvous import meet_launched
from tencrop.evaluation.inference import ScoringTask, build_network, open_val_split, score_part
from tencrop.evaluation.predictions import Scores, gather, load_scores, save_scores
from tencrop.evaluation.subsets import evaluated_index
from tencrop.models.checkpoint_files import weights_sha256

# Without the suffix of score files, which commands may search for meanwhile.
SCORES = "scores"


@contextmanager
def joined_launched() -> Iterator[None]:
    """Within the block, a process group of the processes that srun or torchrun started.

    Under srun, a process that dies or fails ends the others (distributed/liveness.py). Does nothing without such a
    launcher, and after a training, whose process group and watcher are used.
    """
    found, store = launched(), meet_launched()
    if found is None or store is None:
        yield
        return
    environment = cluster_environment()
    # `store` listens on this address until torch's own store does.
    address = f"tcp://{environment.main_address}:{environment.main_port}"
    try:
        # Inside of `try`: a process that fails publishes its exit code before its connections close.
        with watch_launched(store, found.num_processes):
            # gloo and not NCCL: scores are gathered in host memory, where the tensors of all images fit.
            dist.init_process_group("gloo", address, rank=environment.global_rank(), world_size=found.num_processes)
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def score_split(task: ScoringTask, network: nn.Module, out: Path) -> Scores | None:
    """Scores of every image, in index order; None on every process of a group but the first.

    Uses the process group if there is one (after training, or under srun or torchrun); otherwise starts
    hardware.devices processes, which leave their scores in the folder `out` until this one has read them. Raises
    UserError if the machine has fewer GPUs than the configuration asks for.
    """
    config = task.config
    split = open_val_split(config)
    # One process for each device, as in training.
    if not dist.is_initialized() and config.hardware.devices > 1:
        scores: Scores | None = _score_in_new_processes(task, config.hardware.devices, out)
    else:
        rank, num_ranks, local_rank = 0, 1, 0
        if dist.is_initialized():
            rank, num_ranks, local_rank = dist.get_rank(), dist.get_world_size(), cluster_environment().local_rank()
        scores = gather(score_part(task, network, split, rank=rank, num_ranks=num_ranks, local_rank=local_rank))
    if scores is not None:
        # The claim of the whole module, checked on every evaluation: no image dropped, none padded or counted twice.
        index = evaluated_index(config, split)
        assert torch.equal(scores.index, torch.arange(len(index))), "an image was left out or counted twice"
        assert np.array_equal(scores.labels, split.labels[index])
    return scores


def _score_in_new_processes(task: ScoringTask, num_processes: int, out: Path) -> Scores:
    # An error message goes through a queue, not a file: the error may be a full disk.
    messages = mp.get_context("spawn").SimpleQueue()
    out.mkdir(parents=True, exist_ok=True)
    # The scores come back in a score file, which is verified when it is read, and not through a pipe. It is in `out`,
    # which was checked, because /tmp may be smaller than the 400 MB of ImageNet's. Processes meet in /tmp: not every
    # network share can lock the file that they meet through.
    with (
        tempfile.TemporaryDirectory(prefix="tencrop-") as meeting,
        tempfile.TemporaryDirectory(prefix=".scores-", dir=out) as folder,
    ):
        try:
            _spawn_and_join(task, num_processes, Path(meeting), Path(folder), messages)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            if not messages.empty():
                raise UserError(messages.get()) from error
            if isinstance(error, mp.ProcessExitedException) and error.exit_code == 2:
                sys.exit(2)  # it printed why: the store was truncated while it was read (data/native/mapped.py)
            raise
        return load_scores(Path(folder, SCORES))


def _spawn_and_join(
    task: ScoringTask, num_processes: int, meeting: Path, folder: Path, messages: SimpleQueue[str]
) -> None:
    """Run `_process` in new processes and wait for all of them; on Ctrl-C, end them without their tracebacks.

    A terminal sends Ctrl-C to every process. Only this one handles it.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the new processes until `_process` starts
    try:
        # Spawned, not forked: CUDA cannot be used in a forked process.
        processes = mp.spawn(
            _process, (task, num_processes, meeting, folder, messages), nprocs=num_processes, join=False
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes is not None
    try:
        while not processes.join():
            pass
    except BaseException:
        for process in processes.processes:
            process.kill()
        raise


def _process(
    rank: int, task: ScoringTask, num_ranks: int, meeting: Path, folder: Path, messages: SimpleQueue[str]
) -> None:
    """What a started process does. The first one leaves the scores in `folder`; one that fails sends a message."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # mp.spawn makes the kernel send SIGINT if the parent dies
    try:
        # Otherwise every process would use as many threads as there are cores.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_threads("auto", num_ranks))
        # Rendezvous through a file: a port could be taken by another program.
        dist.init_process_group("gloo", f"file://{meeting}/processes", rank=rank, world_size=num_ranks)
        network = build_network(task)
        if weights_sha256(network.state_dict()) != task.identity["weights_sha256"]:
            # Every process reads the file itself; a training that runs meanwhile may have replaced it.
            raise UserError(f"{task.path}: was overwritten during its evaluation; evaluate it again")
        split = open_val_split(task.config)
        part = score_part(task, network, split, rank=rank, num_ranks=num_ranks, local_rank=rank)
        scores = gather(part)
        if scores is not None:
            save_scores(folder / SCORES, scores)
    except UserError as error:
        messages.put(str(error))
        raise
    except OSError as error:
        messages.put(disk_sentence(error))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

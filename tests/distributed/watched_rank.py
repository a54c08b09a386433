"""One rank that watches the others, in a process of its own; used by test_liveness.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

from tencrop.config import UserError
from tencrop.distributed import liveness

NUM_RANKS = 3
# What a rank may do before it meets the others at a barrier.
FAULTS = ("nothing", "mistake", "bug", "kill", "interruption", "hang", "late")


def run(rank: int, port: int, fault: str, folder: Path, tick_s: float) -> None:
    """Join the others, create the file here<rank>, then do `fault`; stderr goes to err<rank>."""
    os.dup2(os.open(folder / f"err{rank}", os.O_CREAT | os.O_WRONLY), 2)
    os.environ["SLURMD_NODENAME"] = f"node{rank}"
    signal.signal(signal.SIGTERM, lambda *_: None)  # as in training, where the handler only sets a flag
    liveness.TICK_S = tick_s
    store = dist.TCPStore("127.0.0.1", port, None, rank == 0, multi_tenant=True)
    with liveness.watch_ranks(store, rank, NUM_RANKS):
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=NUM_RANKS)
        dist.barrier()
        (folder / f"here{rank}").touch()
        match fault:
            case "mistake":
                raise UserError("a broken image")
            case "bug":
                raise RuntimeError("a bug")
            case "interruption":
                sys.exit(75)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(1000)
        dist.barrier()
        if fault == "late":
            time.sleep(10 * tick_s)

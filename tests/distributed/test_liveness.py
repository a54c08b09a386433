"""Ranks of srun end together, with the exit code of a rank that failed, or with 75 when one has died."""

import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist

from distributed.watched_rank import NUM_RANKS, run
from tencrop.config import UserError
from tencrop.distributed.liveness import exit_code_of, is_lost_connection, reason_of

Start = Callable[..., list[BaseProcess]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start({rank: fault}, tick_s) -> the processes of all ranks, after their first barrier."""
    context = multiprocessing.get_context("forkserver")  # imports torch once, not once a rank
    context.set_forkserver_preload(["tencrop.distributed.liveness"])
    processes: list[BaseProcess] = []

    def started(faults: dict[int, str], tick_s: float = 0.2) -> list[BaseProcess]:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        for rank in range(NUM_RANKS):
            arguments = (rank, port, faults.get(rank, "nothing"), tmp_path, tick_s)
            processes.append(context.Process(target=run, args=arguments))
            processes[-1].start()
        while len(list(tmp_path.glob("here*"))) < NUM_RANKS:
            time.sleep(0.05)
        return processes

    yield started
    for process in processes:
        process.kill()
        process.join()


def joined(processes: list[BaseProcess], folder: Path) -> list[tuple[int | None, str]]:
    """The exit code and stderr of each process; of the hanging one, None."""
    for process in processes:
        process.join()
    return [(process.exitcode, (folder / f"err{rank}").read_text()) for rank, process in enumerate(processes)]


@pytest.mark.parametrize(
    ("failing", "fault", "code"),
    [(0, "bug", 1), (1, "bug", 1), (0, "mistake", 2), (1, "mistake", 2), (2, "interruption", 75)],
)
def test_a_rank_that_fails_decides_the_exit_code_of_all(failing, fault, code, start, tmp_path):
    for rank, (exit_code, errors) in enumerate(joined(start({failing: fault}), tmp_path)):
        if rank != failing:  # cli/command.py sets the exit code of the failing one
            assert exit_code == code, errors
            assert f"rank {rank}: rank {failing} ended with exit code {code}; see its message" in errors


@pytest.mark.parametrize("dying", [0, 2])
def test_ranks_exit_with_75_when_another_has_died(dying, start, tmp_path):
    for rank, (exit_code, errors) in enumerate(joined(start({dying: "kill"}), tmp_path)):
        if rank != dying:
            assert exit_code == 75, errors
            reason = "(a connection to another rank was lost|rank 0 does not answer), its process or node has died"
            assert re.search(rf"rank {rank}: {reason} \(.+\); interrupted; the same command continues", errors), errors


@pytest.mark.parametrize("silent", [0, 2])
def test_ranks_exit_with_75_after_sigterm_when_another_is_silent(silent, start, tmp_path):
    """They wait in a collective operation meanwhile, in which Python runs no signal handlers."""
    processes = start({silent: "hang"}, tick_s=0.5)
    os.kill(processes[silent].pid, signal.SIGSTOP)
    others = [process for process in processes if process is not processes[silent]]
    for process in others:
        os.kill(process.pid, signal.SIGTERM)
    for process in others:
        process.join()
        assert process.exitcode == 75
    first = next(rank for rank in range(NUM_RANKS) if rank != silent)
    errors = (tmp_path / f"err{first}").read_text()
    assert re.search(rf"rank {first}: rank {silent} on node{silent} has not answered for [78] s;", errors), errors


@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_finishes_later_is_waited_for(late, start, tmp_path):
    assert all(outcome == (0, "") for outcome in joined(start({late: "late"}), tmp_path))


def test_only_lost_connections_are_taken_for_the_death_of_a_rank():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # nobody listens
        with pytest.raises(dist.DistNetworkError) as nobody:
            dist.TCPStore("127.0.0.1", sock.getsockname()[1], None, False, timeout=timedelta(seconds=1))
    assert is_lost_connection(nobody.value)
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:40000"
    assert reason_of(RuntimeError(f"{gloo}. Check the logs.")) == "Connection closed by peer [127.0.0.1]:40000"
    assert is_lost_connection(RuntimeError(gloo)) and not is_lost_connection(RuntimeError("CUDA out of memory"))
    errors = {SystemExit(75): 75, KeyboardInterrupt(): 75, UserError("x"): 2, OSError(): 2, ValueError(): 1}
    assert all(exit_code_of(error) == code for error, code in errors.items())

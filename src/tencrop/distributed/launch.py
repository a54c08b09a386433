"""Launches the ranks of a training on one machine if neither srun nor torchrun did, and ends them together.

Lightning can launch ranks too, but kills the main process with SIGKILL when another rank fails, so nobody learns why.
Here a failing rank sends its error to rank 0 through a pipe and waits to be killed. Its connections stay open until
then, so that the other ranks do not fail as well and add tracebacks of their own.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch.distributed import TCPStore

from tencrop.config import UserError, num_threads
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.launcher import AGENT, PIPE, RANKS, launched
from tencrop.distributed.liveness import watch_launched
from tencrop.distributed.rendezvous import meet, meet_launched

POLL_S = 0.2
# A RuntimeError may be caused by another rank that was killed. Wait this long before reporting it, so that the watching
# thread can report the killed rank instead, and end this process.
SILENCE_S = 1
END_S = 60  # time for the other ranks to exit by themselves after rank 0 is done


@contextmanager
def launch_ranks(num_ranks: int, *, answer_minutes: float | None = None) -> Iterator[None]:
    """Run the block in `num_ranks` processes, the ranks of one training.

    Starts ranks 1, 2, ... unless srun or torchrun did. Each repeats this command and enters the block here as well. The
    block begins when all have arrived. The first UserError, OSError or exit code of any rank becomes that of the
    command, and its message is printed once.

    answer_minutes: how far apart processes of srun or torchrun may arrive; None: ANSWER_MINUTES of rendezvous.py.
    """
    store = None  # keep a reference during the block: rank 0's store is the server of the others
    if PIPE in os.environ:
        with _reporting():
            store = _meet(int(os.environ["LOCAL_RANK"]))
            yield
    elif num_ranks > 1 and launched() is None:
        others = _OtherRanks(num_ranks)
        try:
            store = _meet(0)
            yield
        except BaseException as error:
            if isinstance(error, RuntimeError):
                time.sleep(SILENCE_S)
            others.end()
            raise
        others.end(within_s=END_S)
    else:
        store = meet_launched(answer_minutes) if num_ranks > 1 else None
        with watch_launched(store, num_ranks):
            yield
    del store


def _meet(rank: int) -> TCPStore:
    num_ranks, address = int(os.environ["WORLD_SIZE"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return meet(rank, num_ranks, address, remedy="run it again")


class _OtherRanks:
    """Ranks 1, 2, ... on this machine, and the thread that watches them."""

    def __init__(self, num_ranks: int):
        self.reader, writer = os.pipe()
        self.ending = threading.Lock()  # never released: the thread that acquires it ends this process
        # torch would use all cores in every rank: 8 ranks on 64 cores would run 512 threads.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_threads("auto", num_ranks))
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        for name in (*RANKS, *AGENT):  # left behind by another launcher; check_launch has found them harmless
            os.environ.pop(name, None)
        # Variables that Lightning's default environment and torch read to find rank 0.
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(num_ranks)}
        os.environ.update(meeting | {"NODE_RANK": "0", "LOCAL_RANK": "0"})
        command = [sys.executable, *sys.orig_argv[1:]]  # orig_argv has -m MODULE and interpreter options, argv not
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, "LOCAL_RANK": str(rank), PIPE: f"{writer} {os.getpid()}"},
                pass_fds=[writer],
            )
            for rank in range(1, num_ranks)
        ]
        os.close(writer)  # so that the pipe reaches its end when the last rank exits
        # A thread, because the main thread may be blocked in a collective operation with a rank that has died.
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self, *, within_s: float = 0) -> None:
        """Kill the ranks that have not exited after `within_s` seconds, and stop the watching thread."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(POLL_S)
        self.ending.acquire()
        self._kill()

    def _kill(self) -> None:
        for process in self.processes:  # kill all before waiting, or a survivor reports the lost connection
            process.kill()
        for process in self.processes:
            process.wait()

    def _watch(self) -> None:
        while any(process.poll() is None for process in self.processes):
            if select.select([self.reader], [], [], POLL_S)[0]:
                if report := os.read(self.reader, 2**16):
                    self._end_with(**json.loads(report.splitlines()[0]))
                time.sleep(POLL_S)  # end of the pipe: all ranks have closed it and are about to exit
            self._check_codes()
        self._check_codes()

    def _check_codes(self) -> None:
        for rank, process in enumerate(self.processes, 1):
            if code := process.poll():
                self._end_with(max(code, 1), f"rank {rank} was ended by signal {-code}" if code < 0 else "")

    def _end_with(self, code: int, message: str) -> NoReturn:
        """End this process, even if its main thread is blocked in a collective operation."""
        self.ending.acquire()
        self._kill()
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # show the cursor, which a progress bar hides
        if message:
            print(f"error: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _reporting() -> Iterator[None]:
    """In a launched rank: report the exception or exit code that ends it to rank 0."""
    try:
        yield
    except SystemExit as stop:
        if not stop.code:
            raise
        _report(int(stop.code), "")
    except UserError as error:
        _report(2, str(error))
    except OSError as error:
        try:
            message = disk_sentence(error)
        except OSError:
            traceback.print_exc()
            _report(1, "")
        _report(2, message)
    except BaseException as error:
        if isinstance(error, RuntimeError):
            time.sleep(SILENCE_S)
        if _is_watched():  # otherwise rank 0 has exited first and has printed the reason
            traceback.print_exc()
        _report(1, "")


def _report(code: int, message: str) -> NoReturn:
    """Send a report to rank 0, then wait with open connections until it kills this process, or has exited itself."""
    pipe, _ = map(int, os.environ[PIPE].split())
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_watched():
        # Truncated, since only writes up to PIPE_BUF (4096 bytes) are atomic: reports of two ranks must not mix.
        os.write(pipe, json.dumps({"code": code, "message": message[:2000]}).encode() + b"\n")
    while _is_watched():
        time.sleep(POLL_S)
    os._exit(code)


def _is_watched() -> bool:
    """Whether rank 0 is alive: when it dies, this process is adopted by another parent."""
    return os.getppid() == int(os.environ[PIPE].split()[1])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # another program may take the port before rank 0 opens it: rendezvous.py says so
        return int(sock.getsockname()[1])

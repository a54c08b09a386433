"""The ranks of one machine where no launcher started them: begun together, ended together. Used by train.py.

Lightning can start them too, but kills the main process with SIGKILL when another rank fails. Here a failing rank says
why through a pipe and waits to be ended, so that no other rank sees a broken connection and adds a traceback.
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
from tencrop.distributed.rendezvous import meet, meet_launched

POLL_S = 0.2
SILENCE_S = 1  # a RuntimeError may be the connection to a rank that was killed: the watch says so and ends this one
END_S = 60  # what the other ranks have to end by themselves when this one is done


@contextmanager
def launch_ranks(num_ranks: int) -> Iterator[None]:
    """While it lasts, this command runs `num_ranks` times, as ranks of one training.

    Starts them where neither srun nor torchrun did; they come by here as well. All are there when the block begins. The
    first UserError, OSError or exit code of any rank is that of this command, said once.
    """
    store = None  # held while the block lasts: rank 0's serves the others
    if PIPE in os.environ:
        with _reporting():
            store = _meet(int(os.environ["LOCAL_RANK"]))
            yield
    elif num_ranks > 1 and launched() is None:
        others = _Others(num_ranks)
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
        store = meet_launched() if num_ranks > 1 else None
        yield
    del store


def _meet(rank: int) -> TCPStore:
    num_ranks, address = int(os.environ["WORLD_SIZE"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return meet(rank, num_ranks, address, mend="run it again")


class _Others:
    """Ranks 1, 2... of this machine, and the thread that watches them."""

    def __init__(self, num_ranks: int):
        self.reader, writer = os.pipe()
        self.ending = threading.Lock()  # whoever takes it ends this process
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_threads("auto", num_ranks))
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        for name in (*RANKS, *AGENT):  # what another launcher left behind, of a process that is alone
            os.environ.pop(name, None)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(num_ranks)}
        os.environ.update(meeting | {"NODE_RANK": "0", "LOCAL_RANK": "0"})
        command = [sys.executable, *sys.orig_argv[1:]]
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, "LOCAL_RANK": str(rank), PIPE: f"{writer} {os.getpid()}"},
                pass_fds=[writer],
            )
            for rank in range(1, num_ranks)
        ]
        os.close(writer)
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self, *, within_s: float = 0) -> None:
        """Ends the ranks that have not ended by themselves in that time; the watch is over."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(POLL_S)
        self.ending.acquire()
        self._kill()

    def _kill(self) -> None:
        for process in self.processes:  # all, before one has ended and the next sees it
            process.kill()
        for process in self.processes:
            process.wait()

    def _watch(self) -> None:
        while any(process.poll() is None for process in self.processes):
            if select.select([self.reader], [], [], POLL_S)[0]:
                if report := os.read(self.reader, 2**16):
                    self._end_with(**json.loads(report.splitlines()[0]))
                time.sleep(POLL_S)  # all have closed it, and are about to end
            self._check_codes()
        self._check_codes()

    def _check_codes(self) -> None:
        for rank, process in enumerate(self.processes, 1):
            if code := process.poll():
                self._end_with(max(code, 1), f"rank {rank} was ended by signal {-code}" if code < 0 else "")

    def _end_with(self, code: int, message: str) -> NoReturn:
        """Ends this process, whatever its main thread waits for."""
        self.ending.acquire()
        self._kill()
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # the cursor, which a progress bar had hidden
        if message:
            print(f"error: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _reporting() -> Iterator[None]:
    """In a started rank: what ends it goes to the main process."""
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
        if _is_watched():  # else the main process has ended first, and has said why
            traceback.print_exc()
        _report(1, "")


def _report(code: int, message: str) -> NoReturn:
    """Waits, connections open, until the main process ends this one, or has ended itself."""
    pipe, _ = map(int, os.environ[PIPE].split())
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_watched():
        os.write(pipe, json.dumps({"code": code, "message": message[:2000]}).encode() + b"\n")
    while _is_watched():
        time.sleep(POLL_S)
    os._exit(code)


def _is_watched() -> bool:
    return os.getppid() == int(os.environ[PIPE].split()[1])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

"""Waits until all processes of a training or an evaluation are there. Called before torch joins them.

torch waits for 30 minutes, in C++, where Python handles no signal: SIGTERM would not end a process that waits for
others which nobody started. Here the main thread waits in small steps and for a stated time. When all are there, torch
meets them at once, through the same port: the TCPStore of rank 0 serves every store of its process.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
import threading
import time

from torch.distributed import DistNetworkError, PrefixStore, TCPStore, is_initialized

from tencrop.config import UserError
from tencrop.config.launcher import launched, unset

ANSWER_MINUTES = 10  # that the processes may start apart: they import for minutes from a network share that is busy
SAY_AFTER_S = 30.0
POLL_S = 0.2
CONNECT_S = 5.0  # that a connection may take before it is tried anew

Address = tuple[str, int]  # host and port


def meet_launched() -> TCPStore | None:
    """The store that the processes of srun or torchrun have met at, when all are there; hold it until they are joined.

    None without a launcher, for one process, and where torch has joined them before. Raises UserError where some do not
    come, and says what to unset.
    """
    found = launched()
    if found is None or found.num_processes == 1 or is_initialized():
        return None
    from tencrop.distributed.cluster import (
        cluster_environment,  # with Lightning, which only launched processes need here
    )

    environment = cluster_environment()
    mend = f"start all of them, or, where {found.launcher} did not start this one, {unset(found.launcher)}"
    address = environment.main_address, environment.main_port
    return meet(environment.global_rank(), found.num_processes, address, mend=mend)


def meet(rank: int, num_processes: int, address: Address, *, mend: str) -> TCPStore:
    """The store at `address`, which rank 0 opens, when all processes have come to it; rank 0 must hold it.

    mend: the end of the sentence (UserError) where some do not come within ANSWER_MINUTES.
    """
    clock = _Clock(f"of {num_processes} processes", address, mend)
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
    store = _opened(address, clock) if rank == 0 and not is_served else _connected(address, clock)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store of torchrun outlives a restart
    arrivals = PrefixStore(f"tencrop/{attempt}", store)
    try:
        arrivals.set(str(rank), "here")
        while not arrivals.check([str(other) for other in range(num_processes)]):
            missing = [str(other) for other in range(num_processes) if not arrivals.check([str(other)])]
            clock.wait(f"rank {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''} did not come")
    except DistNetworkError as error:
        raise UserError(f"rank 0 of {num_processes} ended while rank {rank} waited; see what it says") from error
    return store


class _Clock:
    """Waits a moment, as often as there is time left."""

    def __init__(self, whose: str, address: Address, mend: str) -> None:
        self.whose, self.place, self.mend = whose, f"{address[0]}:{address[1]}", mend
        self.start, self.has_spoken = time.monotonic(), False

    def wait(self, reason: str) -> None:
        """UserError with the reason where there is none; once, after SAY_AFTER_S, it is said on stderr."""
        waited_s = time.monotonic() - self.start
        if waited_s >= 60 * ANSWER_MINUTES:
            raise UserError(f"{self.whose}, {reason} to {self.place} within {ANSWER_MINUTES} minutes; {self.mend}")
        if waited_s >= SAY_AFTER_S and not self.has_spoken:
            self.has_spoken = True
            until = f"waiting until {ANSWER_MINUTES} minutes are over"
            print(f"{self.whose}, {reason} to {self.place} so far; {until}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)


def _opened(address: Address, clock: _Clock) -> TCPStore:
    while (store := _store(address, clock, is_master=True)) is None:
        clock.wait("rank 0 itself did not get through")  # the address is that of another machine, or of none
    return store


def _connected(address: Address, clock: _Clock) -> TCPStore:
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=CONNECT_S).close()  # torch would report every failure on stderr
            if (store := _store(address, clock, is_master=False)) is not None:
                return store
        clock.wait("this one got no answer from rank 0")


def _store(address: Address, clock: _Clock, *, is_master: bool) -> TCPStore | None:
    """None where the connection failed. In a thread: where a program that knows nothing of stores listens at the
    address, torch's call never returns."""
    done: list[TCPStore | DistNetworkError] = []

    def connect() -> None:
        limit = datetime.timedelta(seconds=CONNECT_S)
        try:  # multi-tenant: torch's own store, opened later on the same port, is this one
            done.append(TCPStore(*address, None, is_master, timeout=limit, wait_for_workers=False, multi_tenant=True))
        except DistNetworkError as error:
            done.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(POLL_S)
    while thread.is_alive():
        clock.wait("this one got no answer from rank 0")
    if isinstance(done[0], DistNetworkError):
        if "in use" in str(done[0]):
            raise UserError(f"MASTER_PORT={address[1]}: another program uses this port; set MASTER_PORT to a free one")
        return None
    return done[0]

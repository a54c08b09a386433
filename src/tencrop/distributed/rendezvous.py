"""Rendezvous: waits until all ranks of a training or an evaluation have started, before torch joins them.

torch itself waits for 30 minutes, in C++, where Python handles no signals: SIGTERM would not end a rank that waits for
others which nobody started. Here the main thread waits in small steps and for a limited time. Once all ranks have
arrived, torch connects them immediately through the same port, since the TCPStore of rank 0 is shared by its process.
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

# How far apart the ranks may start. From a busy network share, imports alone take minutes.
ANSWER_MINUTES = 10
SAY_AFTER_S = 30.0  # before the user is told what this rank is waiting for
POLL_S = 0.2
CONNECT_S = 5.0  # timeout of one attempt to connect

Address = tuple[str, int]  # host and port


def meet_launched(answer_minutes: float | None = None) -> TCPStore | None:
    """Wait for all processes of srun or torchrun; returns their store, which must be kept until torch has joined them.

    None without a launcher, for a single process, and if torch has joined them already. Raises UserError if some do not
    arrive within answer_minutes (default: ANSWER_MINUTES), with the variables to unset.
    """
    found = launched()
    if found is None or found.num_processes == 1 or is_initialized():
        return None
    from tencrop.distributed.cluster import cluster_environment  # imports Lightning, which a single process avoids

    environment = cluster_environment()
    remedy = f"start all of them, or, if {found.launcher} did not start this one, {unset(found.launcher)}"
    address = environment.main_address, environment.main_port
    return meet(environment.global_rank(), found.num_processes, address, remedy=remedy, answer_minutes=answer_minutes)


def meet(
    rank: int, num_processes: int, address: Address, *, remedy: str, answer_minutes: float | None = None
) -> TCPStore:
    """Wait until all processes have arrived at the store at `address`, which rank 0 opens and must keep alive.

    remedy: the end of the sentence (UserError) if some do not arrive within answer_minutes.
    """
    clock = _Clock(f"of {num_processes} processes", address, remedy, answer_minutes or ANSWER_MINUTES)
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself serves the store
    store = _open_store(address, clock) if rank == 0 and not is_served else _connect_store(address, clock)
    # torchrun's store outlives a restart of the ranks and still contains the arrivals of the last attempt.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    arrivals = PrefixStore(f"tencrop/{attempt}", store)
    try:
        arrivals.set(str(rank), "here")
        while not arrivals.check([str(other) for other in range(num_processes)]):
            missing = [str(other) for other in range(num_processes) if not arrivals.check([str(other)])]
            clock.wait(f"rank {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''} did not come")
    except DistNetworkError as error:
        raise UserError(f"rank 0 of {num_processes} ended while rank {rank} waited; see its own message") from error
    return store


class _Clock:
    """Sleeps in small steps until the time limit is reached."""

    def __init__(self, whose: str, address: Address, remedy: str, minutes: float) -> None:
        self.whose, self.endpoint, self.remedy = whose, f"{address[0]}:{address[1]}", remedy
        self.minutes = minutes
        self.start, self.has_spoken = time.monotonic(), False

    def wait(self, reason: str) -> None:
        """Sleep for POLL_S. Raises UserError with `reason` after the time limit; prints it once after SAY_AFTER_S."""
        waited_s = time.monotonic() - self.start
        if waited_s >= 60 * self.minutes:
            raise UserError(f"{self.whose}, {reason} to {self.endpoint} within {self.minutes} minutes; {self.remedy}")
        if waited_s >= SAY_AFTER_S and not self.has_spoken:
            self.has_spoken = True
            until = f"waiting until {self.minutes} minutes are over"
            print(f"{self.whose}, {reason} to {self.endpoint} so far; {until}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)


def _open_store(address: Address, clock: _Clock) -> TCPStore:
    while (store := _try_store(address, clock, is_master=True)) is None:
        clock.wait("rank 0 itself did not get through")  # the address is not this machine's
    return store


def _connect_store(address: Address, clock: _Clock) -> TCPStore:
    while True:
        with contextlib.suppress(OSError):
            # Try the port first: torch prints every failed connection on stderr.
            socket.create_connection(address, timeout=CONNECT_S).close()
            if (store := _try_store(address, clock, is_master=False)) is not None:
                return store
        clock.wait("this one got no answer from rank 0")


def _try_store(address: Address, clock: _Clock, *, is_master: bool) -> TCPStore | None:
    """Open the store (`is_master`) or connect to it; None if the connection failed.

    In a thread: if some other program listens at the address, torch's call never returns.

    An interruption (a signal's exception) waits for the thread while its call may still return: a call that returns
    into an interpreter that is exiting aborts the process (SIGABRT), and the scheduler does not requeue the job.
    """
    done: list[TCPStore | DistNetworkError] = []

    def connect() -> None:
        limit = datetime.timedelta(seconds=CONNECT_S)
        try:  # multi_tenant: the store that torch opens later on the same port will be this one
            done.append(TCPStore(*address, None, is_master, timeout=limit, wait_for_workers=False, multi_tenant=True))
        except DistNetworkError as error:
            done.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    must_return_by = time.monotonic() + 2 * CONNECT_S  # one limit for the connection, one for the first answer
    thread.start()
    try:
        thread.join(POLL_S)
        while thread.is_alive():
            clock.wait("this one got no answer from rank 0")
    except BaseException:
        thread.join(max(must_return_by - time.monotonic(), 0))
        raise
    if isinstance(done[0], DistNetworkError):
        if "in use" in str(done[0]):
            raise UserError(f"MASTER_PORT={address[1]}: another program uses this port; set MASTER_PORT to a free one")
        return None
    return done[0]

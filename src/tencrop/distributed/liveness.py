"""Ends the ranks of an srun step together: with the exit code of a rank that failed, or with 75 if a node has died.

srun returns the highest exit code of its tasks, and a rank that loses a connection cannot tell whether the program at
the other end failed or its node died. So a failing rank publishes its exit code in rank 0's TCPStore before its
connections close. Every rank also sends heartbeats, because a collective operation waits for a silent node for
30 minutes (gloo) or 10 (NCCL). Used under srun by training (launch_ranks) and by evaluation (joined_launched).
"""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

from torch.distributed import DistBackendError, DistNetworkError, PrefixStore, Store

from tencrop.config import UserError
from tencrop.config.launcher import launched
from tencrop.signals import INTERRUPTED, MESSAGE

TICK_S = 1.0
# Silence is counted in ticks of this process, so that `scontrol suspend`, which stops all ranks, does not count.
# A file server that hangs may stop every thread of a process for tens of seconds. SLURM declares a silent node down
# after SlurmdTimeout (300 s by default) and sends SIGTERM, then SIGKILL after KillWait (30 s).
SILENT_TICKS = 60
SILENT_TICKS_AFTER_SIGTERM = 15
ANSWER_TICKS = 5  # within which the other ranks read what one has published
END_TICKS = 30  # how long rank 0 waits at its end, because the others would take the end of its store for a failure
VERDICT, DONE = "verdict", "done"


def watch_launched(store: Store | None, num_ranks: int) -> AbstractContextManager[None]:
    """`watch_ranks` for ranks that srun started; nothing without a store, or under torchrun, whose agent watches them.

    store: that of rendezvous.py, in which all ranks have met.
    """
    found = launched()
    if store is None or found is None or found.launcher != "srun":
        return nullcontext()
    return watch_ranks(store, int(os.environ["SLURM_PROCID"]), num_ranks)


@contextmanager
def watch_ranks(store: Store, rank: int, num_ranks: int) -> Iterator[None]:
    """Within the block, end this process if another rank fails, dies or falls silent.

    If a rank leaves the block with an exception, the others exit with its exit code: 2 for UserError and OSError, that
    of SystemExit, 75 for KeyboardInterrupt, otherwise 1. If a rank is gone without having published one, its node or
    its process has died: the others print that and exit with 75. Call it in the main thread.
    """
    watcher = _Watcher(PrefixStore("tencrop/liveness", store), rank, num_ranks)
    try:
        with watcher.signals():
            yield
    except BaseException as error:
        if is_lost_connection(error):
            # Does not return. This rank is a victim: an exit code of its own would hide that of the rank that failed.
            watcher.explain(error)
        watcher.finish(f"{(code := exit_code_of(error))} rank {rank} ended with exit code {code}; see its message")
        raise
    watcher.finish()


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process or its node is gone."""
    # gloo raises RuntimeError; only the text names the source file that raised it.
    is_gloo = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return is_gloo or isinstance(error, DistBackendError | DistNetworkError)


def reason_of(error: BaseException) -> str:
    """What torch says about a collective operation that failed, without its source file and its advice."""
    # "[SOURCE_FILE:LINE] Read error [ADDRESS]: Connection reset by peer. Advice ..."
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[\S+\] ", "", first_line).partition(". ")[0]


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that this exception ends (cli/command.py)."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case KeyboardInterrupt():
            return INTERRUPTED
        case UserError() | OSError():
            return 2
    return 1


class _Watcher:
    """Two threads: one exchanges heartbeats, the other counts the ticks since the last one of each other rank.

    They are separate because every operation of a TCPStore may block for as long as rank 0 is silent.
    """

    def __init__(self, store: Store, rank: int, num_ranks: int):
        self.store, self.rank = store, rank
        # Rank 0 watches all others; they watch rank 0, which tells them about each other.
        self.beats = dict.fromkeys(range(1, num_ranks) if rank == 0 else [0], "")
        self.silent_ticks = dict.fromkeys(self.beats, 0)
        self.verdict: str | None = None  # what this rank publishes when it leaves the block: exit code and reason
        self.is_leaving = threading.Event()
        self.ending = threading.Lock()  # never released: the thread that acquires it decides how this process ends
        self.wakeup_reader, self.wakeup_writer = os.pipe()
        os.set_blocking(self.wakeup_writer, False)
        # Daemons: neither thread may keep a process alive whose main thread has ended.
        self.exchanging = threading.Thread(target=self._exchange, daemon=True)
        self.exchanging.start()
        threading.Thread(target=self._count, daemon=True).start()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within the block, let the counting thread see SIGTERM.

        Python runs signal handlers in the main thread, which may be blocked in a collective operation. The wake-up file
        descriptor is written in any case.
        """
        before = signal.set_wakeup_fd(self.wakeup_writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def finish(self, verdict: str | None = None) -> None:
        """Leave the block and tell the others, with the reason if this rank has failed."""
        self.ending.acquire()
        self.verdict = verdict
        self.is_leaving.set()
        self.exchanging.join(ANSWER_TICKS * TICK_S)
        self._wait_for_others(END_TICKS)

    def explain(self, error: BaseException) -> NoReturn:
        """End this process after a lost connection, as the failure that another rank has published requires, if any."""
        time.sleep(ANSWER_TICKS * TICK_S)  # meanwhile the exchanging thread reads it and ends this process
        lost = "a connection to another rank was lost, its process or node has died"
        self._end(INTERRUPTED, f"{lost} ({reason_of(error)})")

    def _exchange(self) -> None:
        name = f"rank {self.rank}" + (f" on {node}" if (node := os.environ.get("SLURMD_NODENAME")) else "")
        try:
            for number in itertools.count():
                if self.is_leaving.is_set():
                    self._leave()
                    return
                # The number makes each beat a new text. Others compare texts, not times: clocks differ between nodes.
                self.store.set(f"beat {self.rank}", f"{number} {name}")
                self._read_beats()
                if self.store.check([VERDICT]):
                    code, _, reason = self.store.get(VERDICT).decode().partition(" ")
                    self._leave()
                    self._end(int(code), reason)
                time.sleep(TICK_S)
        except RuntimeError as error:  # the store's errors are subclasses
            time.sleep(2 * ANSWER_TICKS * TICK_S)  # if the main thread has noticed it too, its message is better
            if not self.is_leaving.is_set() and self.beats.get(0) != DONE:
                self._end(INTERRUPTED, f"rank 0 does not answer, its process or node has died ({error})")

    def _leave(self) -> None:
        if self.verdict is not None:
            self.store.set(VERDICT, self.verdict)
        self.store.set(f"beat {self.rank}", DONE)

    def _read_beats(self) -> None:
        for rank, before in self.beats.items():
            key = f"beat {rank}"
            # check first: get would block until the key exists, and a rank that has not come yet has none.
            if self.store.check([key]) and (beat := self.store.get(key).decode()) != before:
                self.beats[rank], self.silent_ticks[rank] = beat, 0

    def _count(self) -> None:
        limit = SILENT_TICKS
        while not self.is_leaving.is_set():
            # A wait for signals that is the clock as well. One that a signal cuts short is no tick, hence `continue`.
            if select.select([self.wakeup_reader], [], [], TICK_S)[0]:
                if signal.SIGTERM in os.read(self.wakeup_reader, 1024):
                    limit = SILENT_TICKS_AFTER_SIGTERM
                continue
            for rank, beat in self.beats.items():
                # A rank that has left the block is silent by right.
                self.silent_ticks[rank] += beat != DONE
                if self.silent_ticks[rank] >= limit:
                    who = beat.partition(" ")[2] or f"rank {rank}"
                    self._end(INTERRUPTED, f"{who} has not answered for {self.silent_ticks[rank] * TICK_S:.0f} s")

    def _end(self, code: int, reason: str) -> NoReturn:
        """End this process, even if its main thread is blocked in a collective operation."""
        self.ending.acquire()
        print(f"rank {self.rank}: {reason}" + (f"; {MESSAGE}" if code == INTERRUPTED else ""), file=sys.stderr)
        # os._exit flushes nothing. sys.exit would end only this thread, and the main thread may wait for a silent node.
        sys.stdout.flush()
        sys.stderr.flush()
        if self.rank == 0:
            self.verdict = f"{code} {reason}"
            self._leave()
            self._wait_for_others(ANSWER_TICKS)
        os._exit(code)

    def _wait_for_others(self, num_ticks: int) -> None:
        """On rank 0, which holds the store, wait until the others have left the block or read the verdict."""
        for _ in range(num_ticks):
            if self.rank != 0 or all(beat == DONE for beat in self.beats.values()):
                return
            time.sleep(TICK_S)
            self._read_beats()

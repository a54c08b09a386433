"""Runs train.py and interrupts it: a signal after a chosen step, or SIGKILL in the write of a checkpoint.

bench/kill_and_resume.py draws the moments at random.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTLY_WRITTEN, BETWEEN_LINKS, BEFORE_RENAME = "partly written", "previous.ckpt deleted", "before the rename"
PLACES = (PARTLY_WRITTEN, BETWEEN_LINKS, BEFORE_RENAME)
POLL_S = 0.02
TIMEOUT_S = 1800  # against a hang: a busy machine takes many times as long
TIMED_OUT = -1000  # instead of an exit code
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["timm", "tencrop.training.fit", "tencrop.evaluation.evaluate", "tencrop.report.page"])


@dataclass(frozen=True)
class Kind:
    """A way to interrupt a training."""

    name: str
    signal_number: signal.Signals
    num_ranks: int = 1
    is_in_write: bool = False

    @property
    def exit_codes(self) -> set[int]:
        """Of a command that was interrupted: 75, or minus the signal, also where it comes before Python handles it.

        If that happens to rank 1, rank 0 reports it and exits with 1.
        """
        codes = {-self.signal_number} | ({1} if self.num_ranks > 1 else set())
        return codes if self.signal_number == signal.SIGKILL else codes | {75}


KINDS = (
    Kind("SIGKILL", signal.SIGKILL),
    Kind("SIGTERM", signal.SIGTERM),
    Kind("SIGUSR1", signal.SIGUSR1),
    Kind("SIGKILL in a checkpoint's write", signal.SIGKILL, is_in_write=True),
    Kind("SIGKILL to one rank of two", signal.SIGKILL, num_ranks=2),
    Kind("SIGUSR1 to one rank of two", signal.SIGUSR1, num_ranks=2),
)


@dataclass(frozen=True)
class Moment:
    """`delay_s` seconds after the row of `step` in metrics.jsonl (0: after the command's start), for one rank."""

    step: int
    delay_s: float
    rank: int = 0

    def __str__(self) -> str:
        after = f"step {self.step}" if self.step else "the start"
        return f"{self.delay_s:.2f} s after {after}" + (f", rank {self.rank}" if self.rank else "")


@dataclass(frozen=True)
class MomentOfWrite:
    """In the command's `number`-th write of a checkpoint (1, 2, ...), at one of PLACES.

    fraction: how much of the file is on the disk if it is partly written.
    """

    number: int
    place: str
    fraction: float

    def __str__(self) -> str:
        written = f" ({self.fraction:.0%})" if self.place == PARTLY_WRITTEN else ""
        return f"write {self.number} {self.place}{written}"


def start(words: list[str], in_write: MomentOfWrite | None, log: Path) -> BaseProcess:
    """Start train.py; `log` gets its output, `in_write` is for `kill_in_write`.

    The process is forked from one that has imported torch and the other packages, which saves 6 s of CPU time.
    """
    process = processes.Process(target=train, args=(words, in_write, log))
    process.start()
    return process


def train(words: list[str], in_write: MomentOfWrite | None, log: Path) -> None:
    """Run train.py in this process, which it ends."""
    with log.open("a") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    if in_write is not None:
        kill_in_write(in_write)
    sys.argv = [str(ROOT / "train.py"), *words]
    sys.orig_argv = [sys.executable, *sys.argv]  # the command of rank 1
    runpy.run_path(sys.argv[0], run_name="__main__")


def kill_in_write(moment: MomentOfWrite) -> None:
    """SIGKILL this process in the write of a checkpoint.

    A signal from outside would rarely meet the milliseconds of a write. Python calls an audit hook before it opens,
    links or renames a file, so the code that writes is the unchanged one.
    """
    num_writes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_writes
        is_checkpoint = event in ("open", "os.rename") and str(arguments[0]).endswith(".ckpt.tmp")
        num_writes += event == "open" and is_checkpoint
        if num_writes < moment.number:
            return
        is_rename = event == "os.rename" and is_checkpoint
        if is_rename and moment.place == PARTLY_WRITTEN:
            os.truncate(arguments[0], int(moment.fraction * os.path.getsize(arguments[0])))
        if event == "os.link" if moment.place == BETWEEN_LINKS else is_rename:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def interrupt(process: BaseProcess, kind: Kind, moment: Moment | None, runs: Path) -> int:
    """Send the signal at its moment (None: never) and wait for the command; returns its exit code, or TIMED_OUT."""
    assert process.pid is not None
    begun, reached = time.monotonic(), None
    while process.exitcode is None:
        now = time.monotonic()
        if now - begun > TIMEOUT_S:
            process.kill()
            return TIMED_OUT
        if moment is not None and reached is None and last_step(runs) >= moment.step:
            reached = now
        if moment is not None and reached is not None and now - reached >= moment.delay_s:
            pid = process.pid if moment.rank == 0 else pid_of_rank(moment.rank, process.pid)
            if pid is not None:
                os.kill(pid, kind.signal_number)
                moment = None
        time.sleep(POLL_S)
    return process.exitcode


def last_step(runs: Path) -> int:
    """The step of the last row of metrics.jsonl in the only run folder below `runs`; 0 if there is none."""
    texts = [path.read_text() for path in runs.rglob("metrics.jsonl")]
    lines = texts[0].rpartition("\n")[0].splitlines() if texts else []  # without a row that is being written
    return json.loads(lines[-1])["step"] if lines else 0


def pid_of_rank(rank: int, parent: int) -> int | None:
    """The process of a rank that the command with pid `parent` has started; None if there is none yet, or any more."""
    try:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if f"LOCAL_RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    except OSError:  # a process that has just ended
        pass
    return None

"""Signal handlers: SIGTERM, SIGUSR1 and Ctrl-C in train.py before and after training; Ctrl-C in the other commands, and
SIGTERM in evaluate.py.

During training, training/monitors.py handles them instead. A scheduler may send a signal at any moment: while Python
is still importing, which takes seconds, or after everything has been written. Exit code 75 tells it to requeue the
job, any other one that the job is done. Imports nothing slow: a command calls `exit_at_once` before its other imports
and, except for train.py, `close_at_ctrl_c` after them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# SIGTERM: preemption, or docker stop. SIGUSR1: SLURM's --signal, shortly before the time limit. SIGINT: Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: temporary failure, try again. slurm/train.sbatch checks for it
MESSAGE = "interrupted; the same command continues"


def exit_at_once(*numbers: signal.Signals) -> None:
    """Make the given signals (default: all of SIGNALS) exit with code 75 immediately. For use during start-up.

    Does not raise an exception: an `except:` around some package's import may swallow it, and a few C++ modules abort.
    Skipping all cleanup is safe here, since nothing has been written yet.
    """

    def stop(*_: object) -> None:
        os.write(2, f"{MESSAGE}\n".encode())  # print() raises RuntimeError inside an interrupted print()
        os._exit(INTERRUPTED)

    for number in numbers or SIGNALS:
        signal.signal(number, stop)


def close_at_ctrl_c(*others: signal.Signals) -> None:
    """Make the first Ctrl-C raise KeyboardInterrupt, so that files, threads and processes are closed, and a second one
    exit immediately; likewise for `others`. cli/command.py turns the exception into a message and exit code 75."""

    def stop(*_: object) -> None:
        exit_at_once(signal.SIGINT, *others)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, *others):
        signal.signal(number, stop)


@contextmanager
def exit_when_asked(*, is_first: bool) -> Iterator[None]:
    """Within the block, make SIGNALS raise SystemExit(75), so that files and other processes are closed.

    is_first: whether this process prints the message. Training inside the block installs its own handlers.

    After the block the exit code is final and signals are ignored, so that a complete run is not requeued. Only Ctrl-C
    keeps its default effect, in case the interpreter hangs on exit.
    """

    def stop(*_: object) -> None:
        _ignore()  # a second signal must not interrupt the cleanup
        if is_first:
            print(MESSAGE, file=sys.stderr)
        sys.exit(INTERRUPTED)

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        _ignore()


def _ignore() -> None:
    # default_int_handler raises KeyboardInterrupt
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)

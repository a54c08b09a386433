"""What SIGTERM, SIGUSR1 and Ctrl-C do to train.py while no training handles them (training/monitors.py has that part),
and Ctrl-C to the other verbs.

A scheduler may send them at any moment: while Python still imports, which takes seconds, or when all is written. Exit
code 75 tells it to start the job again, any other that there is nothing more to do. Imports nothing slow: a verb calls
`exit_at_once` before its other imports, and all but train.py `close_at_ctrl_c` behind them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
MESSAGE = "interrupted; the same command continues"


def exit_at_once(*numbers: signal.Signals) -> None:
    """From now on these signals (none named: all) end the process with exit code 75: for start-up, when nothing has
    been written yet.

    Without an exception, which an `except:` around somebody's import may swallow, and which aborts a few C++ modules.
    """

    def stop(*_: Any) -> None:
        os.write(2, f"{MESSAGE}\n".encode())
        os._exit(INTERRUPTED)

    for number in numbers or SIGNALS:
        signal.signal(number, stop)


def close_at_ctrl_c() -> None:
    """From now on the first Ctrl-C raises KeyboardInterrupt, so that files, threads and processes are closed, which
    cli/command.py turns into a line and exit code 75; a second one ends the process at once."""

    def stop(*_: Any) -> None:
        exit_at_once(signal.SIGINT)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)


@contextmanager
def exit_when_asked(*, is_first: bool) -> Iterator[None]:
    """Within the block these signals raise SystemExit(75), so that files and other processes are closed; `is_first`:
    this process says so. A training within it handles them itself.

    When the block ends, the run's exit code is decided, and no signal changes it any more: a complete run is not
    started again. Only Ctrl-C works as ever, against an interpreter that does not end.
    """

    def stop(*_: Any) -> None:
        _ignore()
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
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)

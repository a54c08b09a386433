"""Progress reports of long jobs: a bar with throughput and time left on a terminal, a line every 30 seconds in a log.

Without a terminal, rich prints only the final state of a bar: the log of a job would show nothing for hours.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from tencrop.console import plain_column, rate

LINE_EVERY_S = 30  # interval between lines in a log


def format_bytes(num_bytes: float) -> str:
    """Format a number of bytes with three digits, such as "1.23 MB"."""
    # Powers of 1000, like the printed capacity of a disk, not 1024.
    for unit in ("bytes", "kB", "MB", "GB"):  # the rest is TB, however large
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


@contextlib.contextmanager
def counting_images(
    console: Console, what: str, total: int, *, transient: bool = False
) -> Iterator[Callable[[int], None]]:
    """Report progress in images. Yields a function; call it with the number of images just processed.

    transient: remove the bar at the end; in a log, omit the final line.
    """
    columns = (MofNCompleteColumn(), _Rate())
    with _counting(console, what, total, columns, "{:,.0f}".format, " images", rate, transient=transient) as advance:
        yield advance


@contextlib.contextmanager
def counting_bytes(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Report progress in bytes, likewise."""
    columns = (DownloadColumn(), TransferSpeedColumn())
    with _counting(
        console, what, total, columns, format_bytes, "", lambda amount: f"{format_bytes(amount)}/s"
    ) as advance:
        yield advance


@contextlib.contextmanager
def _counting(
    console: Console,
    what: str,
    total: int,
    columns: Iterable[ProgressColumn],
    amount: Callable[[float], str],
    unit: str,
    speed: Callable[[float], str],
    *,
    transient: bool = False,
) -> Iterator[Callable[[int], None]]:
    if not console.is_terminal:  # a log file or a pipe
        yield _Lines(console, what, total, amount, unit, speed, has_last_line=not transient).advance
        return
    columns = (plain_column("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    # The bar redraws in a thread of its own, so `advance` is cheap enough to call for every image.
    with Progress(*columns, console=console, disable=console.quiet, transient=transient) as bar:
        task = bar.add_task(what, total=total)
        yield lambda number: bar.advance(task, number)


class _Rate(ProgressColumn):
    """Images per second; rich has such a column for bytes only."""

    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed or 0))  # speed is None until two updates are known


class _Lines:
    """Progress in a log: a line every LINE_EVERY_S seconds and, with `has_last_line`, one at the end.

    The throughput is measured from the first call on: that one may report what an interrupted preparation had done.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: int,
        amount: Callable[[float], str],
        unit: str,
        speed: Callable[[float], str],
        *,
        has_last_line: bool,
    ) -> None:
        self._has_last_line = has_last_line
        self._console, self._what, self._total = console, what, total
        self._amount, self._unit, self._speed = amount, unit, speed
        self._first: tuple[float, int] | None = None  # time of the first call, and the amount done by then
        self._done, self._last = 0, time.monotonic()  # so that short jobs print their last line only

    def advance(self, number: int) -> None:
        self._done, now = self._done + number, time.monotonic()
        start, done_before = self._first = self._first or (now, self._done)
        is_over = self._done >= self._total
        if now < self._last + LINE_EVERY_S and not (is_over and self._has_last_line):
            return
        self._last = now
        # Printed as a whole line, so that `tail -f` and grep work.
        line = f"{self._what}: {self._amount(self._done)} of {self._amount(self._total)}{self._unit}"
        if self._done > done_before and now > start:  # no throughput yet otherwise: 0 / 0
            per_s = (self._done - done_before) / (now - start)
            left = datetime.timedelta(seconds=round((self._total - self._done) / per_s))
            line += f", {self._speed(per_s)}" + ("" if is_over else f", {left} left")
        self._console.print(line)


class LogTimer:
    """Tells when the next line of a log is due, and estimates the time left of a job that began with this timer."""

    def __init__(self, every_s: float = LINE_EVERY_S):
        self.every_s = every_s
        self.start = self.latest = time.monotonic()

    def is_due(self) -> bool:
        """Whether `every_s` seconds have passed since this last returned True."""
        now = time.monotonic()  # unlike time.time(), not affected by clock corrections
        if now - self.latest < self.every_s:
            return False
        self.latest = now
        return True

    def time_left(self, *, num_done: int, num_left: int) -> str:
        """ "2 h 14 min left", extrapolated from the mean rate since the start; `num_done` counts from there too."""
        # The mean, not the latest rate: evaluations and checkpoints in between belong to the time left as well.
        return f"{duration((time.monotonic() - self.start) / num_done * num_left)} left"


def duration(seconds: float) -> str:
    """Format a duration: "3 h 20 min", "4 min 10 s" or "12 s"."""
    # Rounded before it is divided: otherwise 59.7 s would become "60 s".
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

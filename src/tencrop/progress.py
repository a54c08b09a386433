"""Progress of a long job: a bar with rate and time left on a terminal, a line every 30 seconds in a log."""

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

LINE_EVERY_S = 30  # between two lines of progress in a log


def readable(num_bytes: float) -> str:
    """1.23 MB, say."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


@contextlib.contextmanager
def counting_images(
    console: Console, what: str, total: int, *, transient: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, or lines in a log; call what it yields with the number of images just done.

    transient: the bar disappears at the end, and a log has no line for the end.
    """
    columns = (MofNCompleteColumn(), _Rate())
    with _counting(console, what, total, columns, "{:,.0f}".format, " images", rate, transient=transient) as advance:
        yield advance


@contextlib.contextmanager
def counting_bytes(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """The same for bytes."""
    columns = (DownloadColumn(), TransferSpeedColumn())
    with _counting(console, what, total, columns, readable, "", lambda amount: f"{readable(amount)}/s") as advance:
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
    if not console.is_terminal:
        yield _Lines(console, what, total, amount, unit, speed, says_end=not transient).advance
        return
    columns = (plain_column("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console.quiet, transient=transient) as bar:
        task = bar.add_task(what, total=total)
        yield lambda number: bar.advance(task, number)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed or 0))


class _Lines:
    """For the log of a job: a line every LINE_EVERY_S seconds and, where `says_end`, one at the end.

    The clock starts with the first call, which may tell what an interrupted preparation had done.
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
        says_end: bool,
    ) -> None:
        self._says_end = says_end
        self._console, self._what, self._total = console, what, total
        self._amount, self._unit, self._speed = amount, unit, speed
        self._first: tuple[float, int] | None = None  # when, and how much was done
        self._done, self._last = 0, time.monotonic()

    def advance(self, number: int) -> None:
        self._done, now = self._done + number, time.monotonic()
        start, done_before = self._first = self._first or (now, self._done)
        is_over = self._done >= self._total
        if now < self._last + LINE_EVERY_S and not (is_over and self._says_end):
            return
        self._last = now
        line = f"{self._what}: {self._amount(self._done)} of {self._amount(self._total)}{self._unit}"
        if self._done > done_before and now > start:
            per_s = (self._done - done_before) / (now - start)
            left = datetime.timedelta(seconds=round((self._total - self._done) / per_s))
            line += f", {self._speed(per_s)}" + ("" if is_over else f", {left} left")
        self._console.print(line)


class LogTimer:
    """Says when the next line of a log is due, and how long a work that began with it will take still."""

    def __init__(self, every_s: float = LINE_EVERY_S):
        self.every_s = every_s
        self.start = self.latest = time.monotonic()

    def is_due(self) -> bool:
        """Whether `every_s` have passed since it last said so."""
        now = time.monotonic()
        if now - self.latest < self.every_s:
            return False
        self.latest = now
        return True

    def time_left(self, *, num_done: int, num_left: int) -> str:
        """ "2 h 14 min left", at the mean pace since the start; num_done: since then."""
        return f"{duration((time.monotonic() - self.start) / num_done * num_left)} left"


def duration(seconds: float) -> str:
    """ "3 h 20 min", "4 min 10 s", "12 s"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

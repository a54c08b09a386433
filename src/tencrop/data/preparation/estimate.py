"""What a preparation will take, said before it starts, and how far it is. Called by prepare."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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

from tencrop.config import StoreOptions, UserError
from tencrop.console import plain_column, rate
from tencrop.data.preparation.statistics import ColorSums
from tencrop.data.sources.folder import EXTENSIONS, counted
from tencrop.data.sources.source import Source
from tencrop.data.store.encode import Undecodable, encode

LINE_EVERY_S = 30  # between two lines of progress in a log
NUM_TRIED = 32  # files of a split that are tried beforehand, to estimate size and time


def announce(
    source: Source, options: dict[str, StoreOptions], *, name: str, root: Path, num_threads: int, console: Console
) -> None:
    """Print what will be written, how long it may take and the free space; UserError where that is too little."""
    num_bytes, seconds = 0.0, 0.0
    for split, options_of_split in options.items():
        bytes_of_split, seconds_of_split = estimate(source, split, options_of_split)
        num_bytes, seconds = num_bytes + bytes_of_split, seconds + seconds_of_split / num_threads
    written = sum(path.stat().st_size for path in root.glob("*.beton*"))  # by a preparation that was interrupted
    disk = shutil.disk_usage(root)
    free = disk.free if disk.total else None  # some network mounts say 0 of 0
    space = "free space not known" if free is None else f"{readable(free)} free"
    counts = " and ".join(f"{len(source.files[split]):,} {split}" for split in options)
    routes = ", ".join(f"{split} from {source.place.splits[split]}" for split in options)
    console.print(
        f"{name}: {counts} images of {len(source.classes):,} classes ({routes}) -> {root}\n"
        f"about {readable(num_bytes)} to write ({space}),"
        f" about {datetime.timedelta(seconds=round(seconds) + 1)} with {num_threads} threads"
        + (f"; {readable(written)} of it are there already" if written else "")
    )
    if left_out := "; ".join(f"{counted(sorts)} of {split}" for split, sorts in source.left_out.items() if sorts):
        console.print(f"left out: {left_out} (images are what ends in {' '.join(EXTENSIONS)}, as in torchvision)")
    if free is not None and num_bytes > free + written:
        raise UserError(
            f"data.root={root}: about {readable(num_bytes)} would be written and {readable(free)} are free;"
            " name a larger disk, or store less (data.store.short_side=256, data.store.mode=jpeg)"
        )


def estimate(source: Source, split: str, options: StoreOptions) -> tuple[float, float]:
    """(bytes to write, seconds of one thread) of a split, from a few files spread evenly over it."""
    files = source.files[split]
    ranks, sums = range(0, len(files), -(-len(files) // NUM_TRIED)), ColorSums()
    read_bytes, stored_bytes, start = 0, 0, time.perf_counter()
    for rank in ranks:
        with contextlib.suppress(Undecodable):  # write_split says so, with the name
            encoded = encode(source.read(split, files[rank]), files[rank].label, options, index=rank)
            read_bytes, stored_bytes = read_bytes + encoded.num_bytes, stored_bytes + len(encoded.sample.payload)
            assert encoded.pixels is not None
            sums.add(encoded.pixels, encoded.height, encoded.width)
    seconds = (time.perf_counter() - start) / len(ranks) * len(files)
    total_bytes = sum(file.num_bytes for file in files)
    scale = total_bytes / max(read_bytes, 1) if total_bytes else len(files) / len(ranks)
    return stored_bytes * scale, seconds


def readable(num_bytes: float) -> str:
    """1.23 MB, say."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


@contextlib.contextmanager
def counting_images(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, or lines in a log; call what it yields with the number of images done."""
    columns = (MofNCompleteColumn(), _Rate())
    with _counting(console, what, total, columns, "{:,.0f}".format, " images", rate) as advance:
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
) -> Iterator[Callable[[int], None]]:
    if not console.is_terminal:
        yield _Lines(console, what, total, amount, unit, speed).advance
        return
    columns = (plain_column("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console.quiet) as bar:
        task = bar.add_task(what, total=total)
        yield lambda number: bar.advance(task, number)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed or 0))


class _Lines:
    """For the log of a job: a line every LINE_EVERY_S seconds and one at the end.

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
    ) -> None:
        self._console, self._what, self._total = console, what, total
        self._amount, self._unit, self._speed = amount, unit, speed
        self._first: tuple[float, int] | None = None  # when, and how much was done
        self._done, self._last = 0, time.monotonic()

    def advance(self, number: int) -> None:
        self._done, now = self._done + number, time.monotonic()
        start, done_before = self._first = self._first or (now, self._done)
        is_over = self._done >= self._total
        if now < self._last + LINE_EVERY_S and not is_over:
            return
        self._last = now
        line = f"{self._what}: {self._amount(self._done)} of {self._amount(self._total)}{self._unit}"
        if self._done > done_before and now > start:
            per_s = (self._done - done_before) / (now - start)
            left = datetime.timedelta(seconds=round((self._total - self._done) / per_s))
            line += f", {self._speed(per_s)}" + ("" if is_over else f", {left} left")
        self._console.print(line)

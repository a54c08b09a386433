"""Estimates size and time of a preparation from a few files, and prints them before it starts."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from pathlib import Path

from rich.console import Console

from tencrop.config import StoreOptions, UserError
from tencrop.data.preparation.statistics import ColorSums
from tencrop.data.sources.folder import EXTENSIONS, format_counts
from tencrop.data.sources.source import Source
from tencrop.data.store.encode import Undecodable, encode
from tencrop.progress import format_bytes

NUM_TRIED = 32  # files of each split that are encoded for the estimate


def announce(
    source: Source, options: dict[str, StoreOptions], *, name: str, root: Path, num_threads: int, console: Console
) -> None:
    """Print how much will be written, how long it may take and the free space; UserError if there is too little."""
    num_bytes, seconds = 0.0, 0.0
    for split, options_of_split in options.items():
        bytes_of_split, seconds_of_split = estimate(source, split, options_of_split)
        num_bytes, seconds = num_bytes + bytes_of_split, seconds + seconds_of_split / num_threads
    written = sum(path.stat().st_size for path in root.glob("*.beton*"))  # by an interrupted preparation
    disk = shutil.disk_usage(root)
    free = disk.free if disk.total else None  # some network mounts report 0 of 0 bytes
    space = "free space not known" if free is None else f"{format_bytes(free)} free"
    counts = " and ".join(f"{len(source.files[split]):,} {split}" for split in options)
    routes = ", ".join(f"{split} from {source.location.splits[split]}" for split in options)
    console.print(
        f"{name}: {counts} images of {len(source.classes):,} classes ({routes}) -> {root}\n"
        f"about {format_bytes(num_bytes)} to write ({space}),"
        f" about {datetime.timedelta(seconds=round(seconds) + 1)} with {num_threads} threads"
        + (f"; {format_bytes(written)} of it is already written" if written else "")
    )
    if left_out := "; ".join(f"{format_counts(sorts)} of {split}" for split, sorts in source.left_out.items() if sorts):
        console.print(f"left out: {left_out} (image files end in {' '.join(EXTENSIONS)}, as in torchvision)")
    # What an interrupted preparation has written occupies space already and is not written again.
    if free is not None and num_bytes > free + written:
        raise UserError(
            f"data.root={root}: about {format_bytes(num_bytes)} would be written, but only {format_bytes(free)} is"
            " free; choose a larger disk, or store less (data.store.short_side=256, data.store.mode=jpeg)"
        )


def estimate(source: Source, split: str, options: StoreOptions) -> tuple[float, float]:
    """(bytes to write, seconds on one thread) of a split, extrapolated from NUM_TRIED files spread evenly over it."""
    files = source.files[split]
    ranks, sums = range(0, len(files), -(-len(files) // NUM_TRIED)), ColorSums()
    read_bytes, stored_bytes, start = 0, 0, time.perf_counter()
    for rank in ranks:
        with contextlib.suppress(Undecodable):  # write_split will report it, with the file's name
            encoded = encode(source.read(split, files[rank]), files[rank].label, options, index=rank)
            read_bytes, stored_bytes = read_bytes + encoded.num_bytes, stored_bytes + len(encoded.sample.payload)
            assert encoded.pixels is not None
            # Statistics too, only for their time.
            sums.add(encoded.pixels, encoded.height, encoded.width)
    seconds = (time.perf_counter() - start) / len(ranks) * len(files)
    total_bytes = sum(file.num_bytes for file in files)
    # Scale by bytes, which is more exact than by files; generated images have no size, so there by files.
    scale = total_bytes / max(read_bytes, 1) if total_bytes else len(files) / len(ranks)
    return stored_bytes * scale, seconds

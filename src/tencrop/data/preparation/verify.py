"""Verifies stored images: all of a prepared folder (prepare.py verify=true), or those that are evaluated.

Opening a folder (`open_split`) compares sizes and the tables of the .beton files only. Training hashes no payload
either: it stops at a JPEG that does not decode, but a changed byte in a raw image, or one that leaves a JPEG decodable,
changes the image unnoticed. Only this module finds that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from tencrop.config import UserError
from tencrop.console import plain_console
from tencrop.data.sampling.rng import Index
from tencrop.data.store.manifest import (
    Split,
    check_file,
    open_split,
    read_manifest,
    source_fingerprint,
    store_fingerprint,
)
from tencrop.progress import counting_images

MAX_NAMED = 5  # damaged images that the error names
CHUNK_SAMPLES = 256  # samples that a thread hashes at a time
T = TypeVar("T")
_REMEDY = "delete {root} and prepare the data again (prepare.py)"


def verify(root: str | Path, data: str = "imagefolder", *, num_threads: int = 1, progress: bool = True) -> None:
    """Raise UserError with the files and images that differ from what was prepared; print a confirmation if none do.

    `data` is the name of the data group, for the command in the error message if nothing is prepared.
    """
    root = Path(root)
    console = plain_console(quiet=not progress, soft_wrap=True)
    manifest = read_manifest(root, data)  # compares it with its own digest
    for name in manifest["splits"]:
        verify_split(root, name, manifest, num_threads=num_threads, console=console)
    if "sha256" not in manifest:
        console.print(
            f"{root / 'manifest.json'}: written by an earlier version, which recorded no digest: its statistics,"
            " class names and options could not be checked"
        )
    console.print(f"{root}: as it was prepared")


def verify_split(root: Path, name: str, manifest: dict[str, Any], *, num_threads: int, console: Console) -> None:
    """Raise UserError with the file or the images of a split that differ from what was prepared."""
    remedy = _REMEDY.format(root=root)
    split = open_split(root, name, data=manifest["name"])
    facts = manifest["splits"][name]
    # First the file table against the manifest, then the .beton file against the table.
    check_file(root / facts["files"], facts["files_sha256"])
    table = np.asarray(split.files)  # without memmap's overhead in each access
    # Runs are compared by these two hashes, so they are computed anew and not believed.
    fingerprints = {
        "source_fingerprint": source_fingerprint(table),
        "store_fingerprint": store_fingerprint(table, facts["store"]),
    }
    for key, found in fingerprints.items():
        if found != facts[key]:
            raise UserError(f"{root / facts['files']}: its {key} is not the manifest's; {remedy}")
    beton = root / facts["beton"]
    # Training reads these columns from the .beton file, reports read names from the table: both must mean the same
    # images.
    for column, theirs in (
        ("label", split.labels),
        ("mode", split.beton.modes),
        ("stored_height", split.beton.heights),
        ("stored_width", split.beton.widths),
    ):
        if not np.array_equal(table[column], theirs):
            raise UserError(f"{beton}: {column} of its samples is not that of {facts['files']}; {remedy}")
    with counting_images(console, name, split.num_samples) as advance:
        damaged = _damaged(split, table, num_threads, advance)
    _refuse(split, damaged)


def verified(batches: Iterable[T], split: Split, *, index_of: Callable[[T], Index]) -> Iterator[T]:
    """Yield the batches; after the last one, raise UserError if stored images in them are not what was written.

    index_of: the sample indices of a batch. A thread hashes the images meanwhile.
    """
    with ThreadPoolExecutor(1) as pool:
        checks = []
        for batch in batches:
            checks.append(pool.submit(_damaged_of, index_of(batch), split, split.files))
            yield batch
        _refuse(split, [index for check in checks for index in check.result()])


def _damaged(split: Split, table: np.ndarray, num_threads: int, advance: Callable[[int], None]) -> list[int]:
    """The samples whose stored bytes do not have the hash in the file table."""
    damaged: list[int] = []
    starts = range(0, split.num_samples, CHUNK_SAMPLES)
    chunks = [np.arange(start, min(start + CHUNK_SAMPLES, split.num_samples)) for start in starts]
    with ThreadPoolExecutor(num_threads) as pool:  # threads suffice: hashing releases the GIL
        for chunk, found in zip(chunks, pool.map(lambda chunk: _damaged_of(chunk, split, table), chunks), strict=True):
            damaged += found
            advance(len(chunk))
    return damaged


def _damaged_of(index: Index, split: Split, table: np.ndarray) -> list[int]:
    expected = table["payload_sha256"]
    return [
        sample
        for sample in index.tolist()
        if hashlib.sha256(split.beton.payload(sample).data).digest() != expected[sample].tobytes()
    ]


def _refuse(split: Split, damaged: list[int]) -> None:
    if damaged:
        named = ", ".join(f"{split.names(index)} (sample {index})" for index in damaged[:MAX_NAMED])
        more = f" and {len(damaged) - MAX_NAMED:,} more" if len(damaged) > MAX_NAMED else ""
        raise UserError(
            f"{split.beton.path}: {len(damaged):,} of {split.num_samples:,} images are not what was written:"
            f" {named}{more}; {_REMEDY.format(root=split.root)}"
        )

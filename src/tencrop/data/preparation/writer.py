"""Writes one split of a prepared folder: its .beton file and its file table.

Threads read, decode, hash and count, a few files at a time; all of this releases the GIL. The caller's thread writes in
index order, so the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tencrop.config import StoreOptions, UserError
from tencrop.data.preparation.parts import (
    Part,
    concatenated,
    part_keys,
    part_ranges,
    read_parts,
    remove_parts,
    write_part,
)
from tencrop.data.preparation.statistics import ColorSums
from tencrop.data.sources.source import Source, SourceFile
from tencrop.data.store.beton import BetonWriter, EncodedSample, tables_sha256
from tencrop.data.store.encode import KINDS, PLAIN_KINDS, EncodedFile, Undecodable, encode
from tencrop.data.store.manifest import file_table, source_fingerprint, store_fingerprint
from tencrop.files import atomic_write, file_sha256, partial_name

CHUNK_FILES = 16  # files in a thread's task, at most
CHUNK_BYTES = 1 << 23  # bytes of these files, at most, unless there is only one: the results are held in memory
MAX_LISTED = 1000  # converted and grayscale files listed in the manifest; the file table has the kind of every file

Item = TypeVar("Item")
Result = TypeVar("Result")


class Chunk(NamedTuple):
    """Consecutive files, encoded by a thread."""

    samples: list[tuple[EncodedSample, tuple] | dict[str, str]]  # (sample, row of the table), or name and reason
    sums: ColorSums


def write_split(
    root: Path,
    split: str,
    source: Source,
    options: StoreOptions,
    *,
    undecodable: str,
    num_threads: int,
    every: int | None = None,
    advance: Callable[[int], None] = lambda num_files: None,
) -> tuple[dict[str, Any], ColorSums]:
    """Write <split>.beton and <split>.files.npy; returns the split's entry of the manifest, and its color sums.

    Continues from the parts of an interrupted preparation. `advance` is called with the number of files done. One file
    in `every` counts in the sums (None: none does). Raises UserError at the first undecodable file unless `undecodable`
    is skip.
    """
    files = source.files[split]
    keys, ranges = part_keys(files, options, every), part_ranges(len(files))
    parts, total = read_parts(root, split, keys, undecodable=undecodable)
    num_done = sum(map(len, ranges[: len(parts)]))
    advance(num_done)
    beton, names = root / f"{split}.beton", root / f"{split}.files.npy"

    # Runs in a thread. Sources and `encode` are thread-safe, and everything slow in them releases the GIL.
    def make(ranks: range) -> Chunk:
        return _chunk(source, split, files[ranks.start : ranks.stop], ranks.start, options, every)

    # False after a kill between the last part and the manifest: nothing is encoded again.
    if len(parts) < len(keys) or not beton.is_file():
        if parts and beton.is_file():  # it was complete, but some later files have changed since
            # Back to the name under which BetonWriter continues a file.
            os.replace(beton, partial_name(beton))
        written = concatenated(parts)
        tasks = [task for part in ranges[len(parts) :] for task in _tasks(files, part)]
        with (
            BetonWriter(beton, len(files), written.metadata, written.payload_bytes) as writer,
            contextlib.closing(map_in_order(make, tasks, num_threads=num_threads)) as chunks,
        ):
            for number in range(len(parts), len(keys)):
                part, sums = _written_part(writer, chunks, len(ranges[number]), split, undecodable, advance)
                writer.sync()  # payloads before the part: a part on disk promises that its payloads are there
                write_part(root, split, number, keys[number], part, sums)
                parts.append(part)
                total.merge(sums)
            writer.finish()
    whole = concatenated(parts)
    # Names in a part are as wide as its longest one; the final table is as wide as the longest of all files, so its
    # bytes do not depend on how the files were split into parts.
    table = file_table(len(whole.rows), max(len(os.fsencode(file.name)) for file in files))
    for name in table.dtype.names or ():
        table[name] = whole.rows[name]
    # A class whose files were all skipped would be an output of the network that is never trained. A subset's val split
    # may lack the files of a class.
    lost = {file.label for file in files} - set(table["label"].tolist())
    if lost:
        beton.unlink()
        remove_parts(root)
        name = source.classes[min(lost)]
        raise UserError(f"class {name} of the {split} split: no image can be decoded; replace them")
    write_npy(names, table)
    facts = split_facts(beton, names, table, dataclasses.asdict(options), num_classes=len(source.classes))
    facts["tables_sha256"] = tables_sha256(whole.metadata, whole.payload_bytes)
    return {**facts, "skipped": whole.skipped}, total


def split_facts(
    beton: Path, names: Path, table: np.ndarray, store: dict[str, Any], *, num_classes: int
) -> dict[str, Any]:
    """The manifest's entry of a split whose files are written; the caller fills in `tables_sha256`."""
    return {
        "num_samples": len(table),
        "per_class": np.bincount(table["label"], minlength=num_classes).tolist(),
        "store": store,
        "beton": beton.name,
        "beton_bytes": beton.stat().st_size,
        "tables_sha256": "",
        "files": names.name,
        "files_bytes": names.stat().st_size,
        "files_sha256": file_sha256(names),
        "source_fingerprint": source_fingerprint(table),
        "store_fingerprint": store_fingerprint(table, store),
        # For people, and not read again: which files were converted, are grayscale or were left out.
        "kinds": dict(Counter(KINDS[kind] for kind in table["kind"])),
        "converted": _converted(table),
        "grayscale": _grayscale(table),
        "skipped": [],
    }


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an .npy file atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    atomic_write(path, buffer.getvalue())


def _written_part(
    writer: BetonWriter,
    chunks: Iterator[tuple[range, Chunk]],
    num_files: int,
    split: str,
    undecodable: str,
    advance: Callable[[int], None],
) -> tuple[Part, ColorSums]:
    """Write the samples of the next `num_files` files; returns them as a Part, and their color sums."""
    first, rows, skipped, sums = writer.count, [], [], ColorSums()
    while num_files > 0:
        _, chunk = next(chunks)
        for item in chunk.samples:
            if isinstance(item, dict):
                # Raised here and not in the thread, so that it is always the first such file in index order.
                if undecodable == "stop":
                    raise UserError(
                        f"{item['name']} of the {split} split cannot be decoded ({item['reason']});"
                        " replace it, or leave such files out with data.undecodable=skip"
                    )
                skipped.append(item)
                continue
            writer.add(item[0])
            rows.append(item[1])
        sums.merge(chunk.sums)
        num_files -= len(chunk.samples)
        advance(len(chunk.samples))
    table = file_table(len(rows), max((len(row[0]) for row in rows), default=1))
    for number, row in enumerate(rows):
        table[number] = row
    return Part(table, *writer.written(first), skipped), sums


def _tasks(files: list[SourceFile], part: range) -> Iterator[range]:
    """Split a part into ranges of CHUNK_FILES files, fewer if the files are large."""
    # 16 images of 25 million pixels take 1.2 GB raw, and up to 2 tasks for each thread are in memory.
    first, num_bytes = part.start, 0
    for rank in part:
        num_bytes += files[rank].num_bytes
        if rank > first and (rank - first == CHUNK_FILES or num_bytes > CHUNK_BYTES):
            yield range(first, rank)
            first, num_bytes = rank, files[rank].num_bytes
    yield range(first, part.stop)


def _chunk(
    source: Source, split: str, files: list[SourceFile], first: int, options: StoreOptions, every: int | None
) -> Chunk:
    """Encode `files`; `first` is the sample index of the first one. Runs in a thread."""
    samples: list[tuple[EncodedSample, tuple] | dict[str, str]] = []
    sums = ColorSums()
    for index, file in enumerate(files, start=first):
        try:
            is_counted = every is not None and index % every == 0
            content = source.read(split, file)
            encoded = encode(content, file.label, options, index=index, with_pixels=is_counted)
        except Undecodable as error:
            samples.append({"name": file.name, "reason": str(error)})
            continue
        if encoded.pixels is not None:
            sums.add(encoded.pixels, encoded.height, encoded.width)
        samples.append((encoded.sample, table_row(file, encoded)))
    return Chunk(samples, sums)


def table_row(file: SourceFile, encoded: EncodedFile) -> tuple:
    """A row of the file table, in the order of `file_table`."""
    stored = encoded.sample
    return (
        os.fsencode(file.name),
        file.label,
        KINDS.index(encoded.kind),
        stored.mode,
        file.offset,
        encoded.num_bytes,
        np.frombuffer(encoded.sha256, np.uint8),
        np.frombuffer(encoded.payload_sha256, np.uint8),
        encoded.height,
        encoded.width,
        stored.height,
        stored.width,
    )


def _converted(table: np.ndarray) -> list[dict[str, str]]:
    """The first MAX_LISTED files named JPEG that are CMYK or another format: these are stored as RGB."""
    # ImageNet has 22 CMYK files and a PNG named JPEG (see TensorFlow's build_imagenet_data.py). Their pixels depend on
    # the converter, so a comparison with another code base needs to know which they are.
    is_plain = np.isin(table["kind"], [KINDS.index(kind) for kind in PLAIN_KINDS])
    names = [os.fsdecode(name) for name in table["name"][~is_plain]]
    kinds = [KINDS[kind] for kind in table["kind"][~is_plain]]
    listed = [pair for pair in zip(names, kinds, strict=True) if pair[0].lower().endswith((".jpg", ".jpeg"))]
    return [{"name": name, "kind": kind} for name, kind in listed[:MAX_LISTED]]


def _grayscale(table: np.ndarray) -> list[str]:
    """The first MAX_LISTED grayscale JPEGs: stored as they are, decoded to three equal channels."""
    return [os.fsdecode(name) for name in table["name"][table["kind"] == KINDS.index("gray jpeg")][:MAX_LISTED]]


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, function(item)) in order, computed by threads that run at most 2 x num_threads items ahead."""
    # Not ThreadPoolExecutor.map: it submits all items at once, and their results would fill the memory if the consumer,
    # here the disk, is slower.
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) == 2 * num_threads:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    finally:  # also when the consumer stops early: do not start the remaining tasks
        pool.shutdown(cancel_futures=True)

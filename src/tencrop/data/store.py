"""Writes one split of a prepared folder: its .beton file and its table of files. Called by prepare.

Threads decode, hash and count (Pillow and hashlib release the GIL); the caller's thread writes in index order, so
the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tencrop.config import StoreOptions, UserError
from tencrop.data.beton import EncodedSample, write_beton
from tencrop.data.encode import KINDS, PLAIN_KINDS, EncodedFile, Undecodable, encode
from tencrop.data.folder import Source, SourceFile
from tencrop.data.manifest import file_table, source_fingerprint, write_whole

MAX_LISTED = 1000  # converted files that the manifest names; the table of files has the kind of every file

Item = TypeVar("Item")
Result = TypeVar("Result")


def write_split(
    root: Path,
    split: str,
    source: Source,
    options: StoreOptions,
    *,
    undecodable: str,
    num_threads: int,
    count: Callable[[Image.Image], None] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write <split>.beton and <split>.files.npy; return what the manifest says of the split.

    `count` is called with every decoded image (RGB, original size), from several threads; `advance` after every
    file. Raises UserError at the first undecodable file unless `undecodable` is skip.
    """
    files = source.files[split]
    table = file_table(len(files), max(len(os.fsencode(file.name)) for file in files))
    stored = hashlib.sha256(json.dumps(dataclasses.asdict(options), sort_keys=True).encode())
    skipped: list[dict[str, str]] = []

    def encode_file(file: SourceFile) -> EncodedFile | Undecodable:
        try:
            encoded = encode(source.read(split, file.name), file.label, options)
        except Undecodable as error:
            return error
        if count is not None:
            count(encoded.image)
        return encoded

    def samples() -> Iterator[EncodedSample]:
        num_stored = 0
        for file, encoded in _in_order(encode_file, files, num_threads=num_threads):
            advance()
            if isinstance(encoded, Undecodable):
                if undecodable == "stop":
                    raise UserError(
                        f"{file.name} of the {split} split cannot be decoded ({encoded});"
                        " replace it, or leave such files out with data.undecodable=skip"
                    )
                skipped.append({"name": file.name, "reason": str(encoded)})
                continue
            table[num_stored] = _row(file, encoded)
            num_stored += 1
            stored.update(b"%d %d %d " % encoded.sample[1:4] + encoded.payload_sha256)
            yield encoded.sample

    beton, names = root / f"{split}.beton", root / f"{split}.files.npy"
    table = table[: write_beton(beton, samples(), len(files))]
    per_class = np.bincount(table["label"], minlength=len(source.classes))
    if not per_class.all():
        raise UserError(f"class {source.classes[per_class.argmin()]} of the {split} split: no image can be decoded")
    write_npy(names, table)
    fingerprint = source_fingerprint(table)
    stored.update(fingerprint.encode())
    return {
        "num_samples": len(table),
        "per_class": per_class.tolist(),
        "beton": beton.name,
        "beton_bytes": beton.stat().st_size,
        "files": names.name,
        "files_bytes": names.stat().st_size,
        "source_fingerprint": fingerprint,
        "store_fingerprint": stored.hexdigest(),
        "kinds": dict(Counter(KINDS[kind] for kind in table["kind"])),
        "converted": _converted(table),
        "skipped": skipped,
    }


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an .npy file whole, or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_whole(path, buffer.getvalue())


def _row(file: SourceFile, encoded: EncodedFile) -> tuple:
    """A row of the table of files, in the order of `file_table`."""
    original, stored = encoded.image, encoded.sample
    return (
        os.fsencode(file.name),
        file.label,
        KINDS.index(encoded.kind),
        encoded.num_bytes,
        np.frombuffer(encoded.sha256, np.uint8),
        original.height,
        original.width,
        stored.height,
        stored.width,
    )


def _converted(table: np.ndarray) -> list[dict[str, str]]:
    """The first files that are called JPEG and hold CMYK or another format, so that pixels are kept instead."""
    is_plain = np.isin(table["kind"], [KINDS.index(kind) for kind in PLAIN_KINDS])
    names = [os.fsdecode(name) for name in table["name"][~is_plain]]
    kinds = [KINDS[kind] for kind in table["kind"][~is_plain]]
    listed = [pair for pair in zip(names, kinds, strict=True) if pair[0].lower().endswith((".jpg", ".jpeg"))]
    return [{"name": name, "kind": kind} for name, kind in listed[:MAX_LISTED]]


def _in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in the items' order, computed by threads that run at most 4 x num_threads ahead."""
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) == 4 * num_threads:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)

"""Atomic file writes, and file hashes. All code that writes results to disk uses this module.

A reader, or the same command after a kill, finds either the former file or the new one, never a part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, fsync it, and rename it."""
    with atomic_file(path) as file:
        file.write(content)


def partial_name(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def name_oserror(path: Path, *, partial: Path | None = None) -> Iterator[None]:
    """Make an OSError in the block name `path` if it names no file, or names `partial`, the temporary file of `path`.

    write() on an open file reports a full disk without a file name, and the user needs to know which disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; fsync and rename it at the end of the block, or delete it on error.

    The temporary name is unique: several evaluations may write the same result at once, and the last one wins.
    An OSError names `path`.
    """
    # The same folder, because a rename is atomic within one file system only.
    partial = partial_name(path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}"))
    try:
        # 1 MiB buffer: many small writes are slow on a network share.
        with name_oserror(path, partial=partial), open(partial, "xb", buffering=1 << 20) as file:
            yield file
            file.flush()
            # Before the rename: otherwise a power cut may leave the new name with no content (delayed allocation).
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # in a read-only folder this would hide the error that matters
            partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)  # fsync of the file does not cover its directory entry
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:  # reads in blocks: checkpoints may be larger than memory
        return hashlib.file_digest(file, "sha256").hexdigest()

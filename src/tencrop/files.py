"""Writing a file whole or not at all, and hashing one. Every stage that writes to disk uses this.

A reader, or the same command after a kill, sees the former file or the new one and never a part of it.
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
    """Write a file under a temporary name in the same folder, bring it to disk, rename it."""
    with atomic_file(path) as file:
        file.write(content)


def partial_name(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def name_oserror(path: Path, *, partial: Path | None = None) -> Iterator[None]:
    """An OSError of the block names this file where it names none (a full disk's, when an open file is written to), or
    the file `partial` that is to become it."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name in the same folder; brought to disk and renamed at the end, gone after an error.

    The name is this call's own: several evaluations may write one result at once, and the last one stays, whole.
    An OSError names `path`.
    """
    partial = partial_name(path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}"))
    try:
        with name_oserror(path, partial=partial), open(partial, "xb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # a read-only folder's, which hides the error that matters
            partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (a rename, say) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256, hexadecimal, of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

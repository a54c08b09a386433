"""The interface of image sources, and reading original files from a folder tree, a tar or a zip.

The sources (folder, ilsvrc, tiny_imagenet, cifar10, mnist, digits) implement `Source`. A prepared folder records a
`SourceLocation`, with which the reference loader reads the original files again.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from tencrop.config import UserError

# Routes: how to read a file `CLASS/NAME` of a split. The manifest stores these strings, so they must not change.
TREE = "tree"  # at PATH/SPLIT/CLASS/NAME
FLAT = "flat"  # at PATH/SPLIT/NAME
TAR = "tar"  # at its offset in the archive PATH/SPLIT
ZIP = "zip"  # at the offset of its local header in the archive PATH/SPLIT
GENERATED = "made"  # generated in memory by its source
BETON = "beton"  # by its index in the split's .beton file


class SourceFile(NamedTuple):
    name: str  # class/file
    label: int  # rank of the class among the sorted class names
    num_bytes: int
    offset: int = 0  # in the archive; 0 if there is none


@dataclass(frozen=True)
class SourceLocation:
    """Where the files of a source are; recorded in the manifest."""

    path: str | None  # the user's folder; None for built-in data
    splits: dict[str, str]  # folder or archive of each split, relative to `path`
    routes: dict[str, str]  # of each split: TREE | FLAT | TAR | ZIP | GENERATED | BETON
    archives: dict[str, int] = field(default_factory=dict)  # size in bytes of every archive that was read


class Source(Protocol):
    """A source of images. `files[split]` is sorted bytewise by class and name; its ranks are the sample indices."""

    location: SourceLocation
    classes: list[str]  # sorted bytewise
    files: dict[str, list[SourceFile]]  # by split: "train", "val"
    left_out: dict[str, Counter[str]]  # by split: files that are not images, counted by kind

    def read(self, split: str, file: SourceFile) -> bytes:
        """The bytes of an image file. Must be thread-safe."""
        ...

    def published_md5(self) -> dict[str, str]:
        """Published MD5 by archive name; called only if the source has archives."""
        ...


def read_original(location: SourceLocation, split: str, file: SourceFile) -> bytes:
    """The bytes of an original file, on any route except GENERATED and BETON; UserError if it is gone."""
    assert location.path is not None
    path, route = Path(location.path) / location.splits[split], location.routes[split]
    if route == TREE:
        return read_file(path / file.name)
    if route == FLAT:
        return read_file(path / file.name.rpartition("/")[2])
    # Opened for every file: a few microseconds, and no descriptor to share among threads and forked workers.
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise UserError(f"{path}: the archive is gone; put it back, or set data.source to its new folder") from error
    try:
        if route == TAR:
            content = pread(descriptor, file.offset, file.num_bytes)
        else:
            content = _read_zip_member(descriptor, file)
    finally:
        os.close(descriptor)
    if len(content) != file.num_bytes:
        raise UserError(
            f"{path}: {file.name} is no longer at its offset, or the archive is truncated; prepare the data again"
        )
    return content


def read_file(path: Path) -> bytes:
    """The bytes of an original file; UserError if it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: the original file is gone; put it back, or set data.source to its new folder"
        ) from error


def pread(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """`num_bytes` bytes from `offset` on, fewer only at the end of the file; does not move the file's position."""
    # In a loop: Linux returns at most 2 GB from one call, and network file systems may return less.
    parts = []
    while num_bytes > 0 and (part := os.pread(descriptor, num_bytes, offset)):
        parts.append(part)
        offset, num_bytes = offset + len(part), num_bytes - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_zip_member(descriptor: int, file: SourceFile) -> bytes:
    """The zip member whose local header is at `file.offset` (PKWARE's APPNOTE, section 4.3.7); b"" if there is none."""
    # Not zipfile: opening Kaggle's archive parses a directory of more than a million entries, in every process.
    header = pread(descriptor, file.offset, 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        return b""
    method, name_bytes, extra_bytes = struct.unpack_from("<8xH16xHH", header)
    start = file.offset + 30 + name_bytes + extra_bytes
    if method == 0:
        return pread(descriptor, start, file.num_bytes)
    inflater, content = zlib.decompressobj(-15), b""  # -15: a raw deflate stream, without a zlib header
    while not inflater.eof and len(content) < file.num_bytes and (part := pread(descriptor, start, 1 << 16)):
        start += len(part)
        try:
            content += inflater.decompress(part, file.num_bytes - len(content) + 1)
        except zlib.error:
            return b""
    return content

"""What a source of images is, and how an original file is read again where it lies: in a tree, a tar, a zip.

The sources (folder, ilsvrc, tiny_imagenet, cifar10, digits) build on this; so do the readers of a prepared folder.
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

# How a file `CLASS/NAME` of a split is reached: at PATH/SPLIT/CLASS/NAME | at PATH/SPLIT/NAME | by its offset in the
# archive PATH/SPLIT, as it stands there (tar) or behind a zip's local header | made in memory by its source | in the
# .beton file of the split, at this place in it.
TREE, FLAT, TAR, ZIP, GENERATED, BETON = "tree", "flat", "tar", "zip", "made", "beton"


class SourceFile(NamedTuple):
    name: str  # class/file
    label: int  # rank of the class among the sorted class names
    num_bytes: int
    offset: int = 0  # within the archive; 0 where there is none


@dataclass(frozen=True)
class SourceLocation:
    """Where the files of a source lie; the manifest keeps it."""

    path: str | None  # the user's folder; None for what is built in
    splits: dict[str, str]  # folder or archive of each split, within `path`
    routes: dict[str, str]  # of each split: TREE | FLAT | TAR | ZIP | GENERATED | BETON
    archives: dict[str, int] = field(default_factory=dict)  # bytes of every archive that was read


class Source(Protocol):
    """Where images come from; a file's rank in `files[split]`, sorted bytewise by class and name, is its index [1]."""

    place: SourceLocation
    classes: list[str]  # sorted bytewise
    files: dict[str, list[SourceFile]]  # by split: "train", "val"
    left_out: dict[str, Counter[str]]  # by split: files that are not taken for images, counted by what they are

    def read(self, split: str, file: SourceFile) -> bytes:
        """The encoded image. May be called from several threads."""
        ...

    def published_md5(self) -> dict[str, str]:
        """Of every archive that it may read; asked only where there is one."""
        ...


def read_original(place: SourceLocation, split: str, file: SourceFile) -> bytes:
    """The bytes of an original file on any route but GENERATED and BETON; UserError where it is gone."""
    assert place.path is not None
    path, route = Path(place.path) / place.splits[split], place.routes[split]
    if route == TREE:
        return read_file(path / file.name)
    if route == FLAT:
        return read_file(path / file.name.rpartition("/")[2])
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise UserError(f"{path}: the archive is gone; put it back, or name data.source where it lies") from error
    try:
        if route == TAR:
            content = pread(descriptor, file.offset, file.num_bytes)
        else:
            content = _read_zip_member(descriptor, file)
    finally:
        os.close(descriptor)
    if len(content) != file.num_bytes:
        raise UserError(f"{path}: {file.name} is not where it was, or the archive is truncated; prepare the data again")
    return content


def read_file(path: Path) -> bytes:
    """The bytes of an original file; UserError where it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: the original file is gone; put it back, or name data.source where it lies") from error


def pread(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """`num_bytes` from `offset` on, fewer only where the file ends; leaves the file's position alone."""
    parts = []
    while num_bytes > 0 and (part := os.pread(descriptor, num_bytes, offset)):
        parts.append(part)
        offset, num_bytes = offset + len(part), num_bytes - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_zip_member(descriptor: int, file: SourceFile) -> bytes:
    """The member whose local header is at `file.offset`; empty where there is none. PKWARE's APPNOTE, section 4.3.7."""
    header = pread(descriptor, file.offset, 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        return b""
    method, name_bytes, extra_bytes = struct.unpack_from("<8xH16xHH", header)
    start = file.offset + 30 + name_bytes + extra_bytes
    if method == 0:
        return pread(descriptor, start, file.num_bytes)
    inflater, content = zlib.decompressobj(-15), b""
    while not inflater.eof and len(content) < file.num_bytes and (part := pread(descriptor, start, 1 << 16)):
        start += len(part)
        try:
            content += inflater.decompress(part, file.num_bytes - len(content) + 1)
        except zlib.error:
            return b""
    return content

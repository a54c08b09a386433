"""Indexes the members of tar and zip archives by offset, so that threads can read them in any order.

Nothing is unpacked to disk. Members that could lead outside the archive (absolute paths, `..`, links, devices) are
refused nevertheless, because no data set contains them.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tencrop.config import UserError
from tencrop.data.sources.source import pread

MAX_SMALL_FILE_BYTES = 1 << 28  # limit for files that are decompressed whole into memory (decompression bombs)


class Member(NamedTuple):
    """A file in an archive."""

    name: str  # as in the archive, without a leading ./
    offset: int  # bytes from the start of the archive: of the content (tar), of the local header (zip)
    num_bytes: int


def tar_members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """The files of an uncompressed tar, in the order of the archive.

    within: a member of `path` that is itself a tar, whose files are listed instead. ImageNet's training archive holds a
    tar for each class.

    Raises UserError for a truncated or damaged archive and for a member that is neither a file nor a folder.
    """
    size = path.stat().st_size
    start, end = (within.offset, within.offset + within.num_bytes) if within else (0, size)
    label = f"{path}, {within.name}" if within else str(path)
    # _Window presents the inner tar as a file of its own, so it is read in place and not extracted.
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=_Window(file.fileno(), start, end), mode="r:") as archive:
                while (entry := archive.next()) is not None:
                    # tarfile keeps every entry in this list: a kilobyte each, for a million files.
                    archive.members = []  # type: ignore[attr-defined]
                    if entry.isdir():
                        continue
                    member = Member(_safe_name(label, entry), start + entry.offset_data, entry.size)
                    if member.offset + member.num_bytes > end:
                        raise UserError(f"{label}: truncated within {member.name}; download it again")
                    yield member
                # tarfile silently stops at a damaged or truncated header. A real end is a block of zeros.
                if pread(file.fileno(), start + archive.offset, min(512, end - start - archive.offset)) != bytes(512):
                    raise UserError(f"{label}: damaged or truncated after byte {archive.offset}; download it again")
        except (tarfile.TarError, EOFError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{label}: not a tar archive, or damaged ({error}); download it again") from error


def small_files(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents by name of the files of a compressed tar that are `wanted`. Raises UserError like `tar_members`."""
    found = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for entry in archive:
                if entry.isdir():
                    continue
                name = _safe_name(str(path), entry)
                if wanted(name):
                    if entry.size > MAX_SMALL_FILE_BYTES:
                        raise UserError(f"{path}: {name} claims {entry.size} bytes; this is not the published archive")
                    content = archive.extractfile(entry)
                    assert content is not None
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a disk error; for damaged data, gzip raises OSError without errno
        raise UserError(f"{path}: not a tar archive, or damaged ({error}); download it again") from error
    return found


def zip_members(path: Path) -> Iterator[Member]:
    """The files of a zip; UserError if it is damaged or has a member that is encrypted, a link or leads outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                _check_name(str(path), entry.filename)
                kind = entry.external_attr >> 16 & 0o170000  # the Unix file type; 0 if the zip was made elsewhere
                if kind not in (0, 0o100000) or entry.flag_bits & 1:
                    raise UserError(f"{path}: {entry.filename} is a link, a device or encrypted; refused")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(f"{path}: {entry.filename} is neither stored nor deflated; zip it again")
                # The offset is that of the local header. Its length can differ from that of the entry in the central
                # directory, so the content's offset is only known once the header itself has been read.
                yield Member(entry.filename, entry.header_offset, entry.file_size)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a zip archive, or truncated ({error}); download it again") from error


def check_md5(path: Path, expected: str, advance: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Raise UserError unless the file has the published MD5. `advance` is called with the number of bytes read."""
    # MD5, because that is what is published. It detects damage, not manipulation.
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while part := file.read(1 << 22):
            digest.update(part)
            advance(len(part))
    if digest.hexdigest() != expected:
        raise UserError(f"{path}: its MD5 is {digest.hexdigest()}, but {expected} was published; download it again")


def _safe_name(archive: str, entry: tarfile.TarInfo) -> str:
    _check_name(archive, entry.name)
    if not entry.isreg() or entry.issparse():
        raise UserError(f"{archive}: {entry.name} is a link, a device or sparse; archive plain files only")
    return entry.name.removeprefix("./")


def _check_name(archive: str, name: str) -> None:
    # Backslashes are separators on Windows, where such an archive may have been made.
    if name.startswith("/") or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        raise UserError(f"{archive}: the name of member {name!r} leads outside of the archive; archive the files again")


class _Window(io.RawIOBase):
    """The bytes [start, end) of an open file, as a read-only file object."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor, self._start, self._size, self._position = descriptor, start, end - start, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        content = pread(self._descriptor, self._start + self._position, left if size < 0 else min(size, left))
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

"""Copies prepared data to a disk of the node, once for all processes there (data.stage), and reads from the copy.

train.py and evaluate.py call `staged`. A copy lies in DIR/NAME-HASH, where HASH is of the manifest:

    manifest.json, *.beton, *.npy   verified files, renamed into the folder; a killed copy leaves none of them
    partial/                        a copy under way, or the rest of a killed one, which the next process deletes
    .copying                        locked while a process copies
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tencrop.config import Data, UserError
from tencrop.config.cores import num_granted_cores
from tencrop.config.writable import check_writable
from tencrop.console import plain_console
from tencrop.data.preparation.verify import verify_split
from tencrop.data.store.manifest import manifest_sha256, open_split, read_manifest
from tencrop.files import name_oserror, sync_folder
from tencrop.progress import counting_bytes, format_bytes

BLOCK_BYTES = 16 << 20
LOCK, PARTIAL = ".copying", "partial"


@contextlib.contextmanager
def staged(data: Data, splits: Sequence[str]) -> Iterator[Data]:
    """Yield `data` with the copy as its root, after copying those of `splits` that are missing there.

    Without data.stage, yields `data` itself. Every byte of a new copy is compared with the fingerprints. After the
    block the copy is deleted unless data.keep_stage, or another process uses it.

    Raises UserError if data.root is not prepared, an environment variable in data.stage is not set, or the folder
    cannot be written, has no locks or too little space.
    """
    if data.stage is None:
        yield data
        return
    manifest = read_manifest(data.root, data.name)
    folder = stage_folder(data.stage, manifest)
    check_writable(folder / "manifest.json", remedy="name another folder with data.stage=DIR")
    with _used(folder, is_kept=data.keep_stage):
        with _locked(folder / LOCK):
            if missing := [split for split in splits if not _is_whole(folder, manifest, split)]:
                _copy(Path(data.root), folder, manifest, missing)
        yield dataclasses.replace(data, root=str(folder))


def stage_folder(stage: str, manifest: dict[str, Any]) -> Path:
    """The folder of the copy, DIR/NAME-HASH. Variables such as $TMPDIR in `stage` are those of this process."""
    place = os.path.expandvars(stage)
    if "$" in place:
        raise UserError(f"data.stage={stage}: the environment variable is not set here; set it, or name a folder")
    return Path(place).absolute() / f"{manifest['name']}-{manifest_sha256(manifest)[:16]}"


def check_room(root: Path, folder: Path, manifest: dict[str, Any], splits: Sequence[str]) -> int:
    """The bytes of a copy of `splits`. Raises UserError if they do not fit on the disk of `folder`."""
    num_bytes = sum((root / name).stat().st_size for name in _files(manifest, splits))
    disk = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir()))
    if disk.total and num_bytes > disk.free:  # some network mounts report 0 of 0 bytes
        raise UserError(
            f"data.stage={folder.parent}: {format_bytes(num_bytes)} of {root} would be copied, but only"
            f" {format_bytes(disk.free)} is free; choose a larger disk, or leave data.stage out"
        )
    return num_bytes


def _files(manifest: dict[str, Any], splits: Sequence[str]) -> list[str]:
    names = [manifest["splits"][split][kind] for split in splits for kind in ("beton", "files")]
    return [*names, *([manifest["mean_image"]] if "mean_image" in manifest else [])]


def _is_whole(folder: Path, manifest: dict[str, Any], split: str) -> bool:
    """Whether the folder has this split of this manifest; its files were verified before they got their names."""
    try:
        open_split(folder, split)  # a cleaner of /tmp may have removed a file
        return manifest_sha256(read_manifest(folder)) == manifest_sha256(manifest)
    except UserError:
        return False


def _copy(root: Path, folder: Path, manifest: dict[str, Any], splits: Sequence[str]) -> None:
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a killed copy
    num_bytes = check_room(root, folder, manifest, splits)
    console = plain_console(soft_wrap=True, file=sys.stderr)
    console.print(f"data.stage: copying {format_bytes(num_bytes)} from {root} to {folder}")
    partial.mkdir()
    try:
        with counting_bytes(console, "copied", num_bytes) as advance:
            for name in _files(manifest, splits):
                _copy_file(root / name, partial / name, advance)
        shutil.copyfile(root / "manifest.json", partial / "manifest.json")
        _verify(partial, root, manifest, splits, console)
        for name in [*_files(manifest, splits), "manifest.json"]:  # the manifest last: it makes the folder readable
            os.replace(partial / name, folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_file(source: Path, target: Path, advance: Callable[[int], None]) -> None:
    with name_oserror(target), open(source, "rb") as reader, open(target, "xb") as writer:
        while block := reader.read(BLOCK_BYTES):
            writer.write(block)
            advance(len(block))
        writer.flush()
        os.fsync(writer.fileno())  # a full disk or a quota may be reported only here


def _verify(partial: Path, root: Path, manifest: dict[str, Any], splits: Sequence[str], console: Console) -> None:
    try:
        for split in splits:
            verify_split(partial, split, manifest, num_threads=num_granted_cores(), console=console)
    except UserError as error:
        raise UserError(
            f"{root}: its copy in data.stage is not what was prepared; compare the original with its fingerprints"
            f" (prepare.py data.root={root} verify=true), and check the disk of {partial.parent} if that passes"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; says so if another process holds it, and waits."""
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"data.stage: waiting for the process that copies to {path.parent}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _used(folder: Path, *, is_kept: bool) -> Iterator[None]:
    """Hold a shared lock of the folder, which keeps others from deleting it.

    Deletes the folder at the end unless `is_kept` and it has a copy.
    """
    descriptor = _open_used(folder)
    try:
        yield
    finally:
        # Other users have shared locks: the last one deletes.
        with contextlib.suppress(BlockingIOError):
            if not (is_kept and (folder / "manifest.json").exists()):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _open_used(folder: Path) -> int:
    """A descriptor of the folder with a shared lock; creates the folder."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise UserError(
                f"data.stage={folder.parent}: this file system has no locks; name a folder on the node's own disk"
            ) from error
        # Another process may have deleted the folder while this one waited for the lock.
        if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)

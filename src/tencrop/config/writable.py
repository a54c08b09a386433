"""Checks that the output files can be written before the work starts, so that hours of it are not lost at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from tencrop.config.disk_errors import DISK_ERRORS, LONGEST_PATH, REMEDIES
from tencrop.config.schema import UserError


def check_writable(*paths: Path, remedy: str) -> None:
    """Raise UserError unless a file can be written at each path. `remedy` tells how to choose another location.

    Writes one block to a temporary file in the folder, or in its nearest existing ancestor, and removes it. Mode bits
    are not enough: they show neither quotas nor full disks nor read-only mounts, and do not bind root.
    """
    for path in paths:
        try:
            _try_to_write(path)
        except OSError as error:
            number, name = error.errno or 0, str(path)
            if number in (errno.ELOOP, errno.ENAMETOOLONG) and len(name) > LONGEST_PATH:
                name = f"{name[:LONGEST_PATH]}..."
            reason, own_remedy = DISK_ERRORS.get(number, os.strerror(number)), REMEDIES.get(number, remedy)
            raise UserError(f"{name}: cannot be written ({reason}); {own_remedy}") from error


def _try_to_write(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # raises ENAMETOOLONG or ELOOP
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    trial = _nearest(path.parent) / f".tencrop-{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)  # NFS buffers writes, and reports an exceeded quota only here
    finally:
        os.close(descriptor)
        trial.unlink()


def _nearest(folder: Path) -> Path:
    """The folder or its nearest existing ancestor. A dangling link counts as existing, since mkdir fails there."""
    try:
        folder.lstat()
    except FileNotFoundError:
        return _nearest(folder.parent)
    return folder

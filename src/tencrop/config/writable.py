"""Whether files can be written where they will go, tried before the work. Called by all verbs that write files."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from tencrop.config.disk_errors import DISK_ERRORS, LONGEST_PATH, REMEDIES
from tencrop.config.schema import UserError


def check_writable(*paths: Path, mend: str) -> None:
    """Raises UserError, one sentence, unless a file can be written at each of these paths. It ends with `mend` where
    another place helps.

    A block is written in the folder, or in the nearest one above that exists, and removed again: mode bits say nothing
    of root, of quotas, full disks and read-only mounts. The paths themselves are left as they are.
    """
    for path in paths:
        try:
            _try_to_write(path)
        except OSError as error:
            number, name = error.errno or 0, str(path)
            if number in (errno.ELOOP, errno.ENAMETOOLONG) and len(name) > LONGEST_PATH:
                name = f"{name[:LONGEST_PATH]}..."
            reason, own_mend = DISK_ERRORS.get(number, os.strerror(number)), REMEDIES.get(number, mend)
            raise UserError(f"{name}: cannot be written ({reason}); {own_mend}") from error


def _try_to_write(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # a name that is too long, say
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    trial = _nearest(path.parent) / f".tencrop-{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)  # NFS says only now that a quota is used up
    finally:
        os.close(descriptor)
        trial.unlink()


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists; a link that leads nowhere counts, as mkdir fails there."""
    try:
        folder.lstat()
    except FileNotFoundError:
        return _nearest(folder.parent)
    return folder

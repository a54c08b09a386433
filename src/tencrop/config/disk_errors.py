"""Turns an OSError caused by the user's disk or path into one sentence: what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno
import os

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTDIR: "a part of the path is a file and not a folder",
    errno.EEXIST: "there is a file where a folder should be",
    errno.EISDIR: "there is a folder where a file should be",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "symbolic links form a loop",
    errno.EIO: "the disk or file server failed to read or write",
    errno.ESTALE: "the file is gone from the network share, or the share was remounted (stale file handle)",
    errno.ETIMEDOUT: "the network, or a share on it, does not answer",
    errno.ENOTCONN: "the program behind this mount has ended (s3fs, gcsfuse, sshfs)",
    errno.EMFILE: "this process has reached its limit of open files",
    errno.ENFILE: "this machine has reached its limit of open files",
    errno.EFBIG: "the file would be larger than the file system or the limit of this process allows",
}
REMEDIES = {  # for errors that writing to another folder would not fix
    errno.ELOOP: "remove the link, or name another file or folder",
    errno.EIO: "run it again, and check the disk if it fails again (dmesg shows details)",
    errno.ESTALE: "run it again, and remount the share if it fails again",
    errno.ETIMEDOUT: "run it again when it answers",
    errno.ENOTCONN: "remount it, and run it again",
    errno.EMFILE: "raise the limit (ulimit -n 65536), or use fewer workers",
    errno.ENFILE: "end other programs, or have the limit raised (sysctl fs.file-max)",
    errno.EFBIG: "raise the limit (ulimit -f unlimited), or name a folder on another file system",
}
LONGEST_PATH = 200  # characters; a path through a loop of symbolic links has thousands


def disk_sentence(error: OSError) -> str:
    """One sentence for an error that the user's disk or path explains; raises any other error again.

    Only listed errors count as the user's: the traceback of any other one is what we need to find our own fault.
    """
    if error.errno not in DISK_ERRORS:
        raise error
    remedy = REMEDIES.get(error.errno, "make room, or name another file or folder")
    return f"{DISK_ERRORS[error.errno]}{_file_name(error)}; {remedy}"


def _file_name(error: OSError) -> str:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename or "")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG) and len(name) > LONGEST_PATH:
        name = f"{name[:LONGEST_PATH]}..."
    return f" ({name})" if name else ""

"""A folder for the caches of libraries, for users without a home folder; called at the start of every command."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import tempfile
from pathlib import Path

# Where matplotlib and wandb write if these are set, instead of below the home folder. Not WANDB_DATA_DIR, which must
# outlive the command (records/wandb_tracker.py).
CACHES = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "WANDB_CACHE_DIR")


def provide_cache_folder() -> None:
    """Point libraries to a temporary folder, removed at exit, if the home folder cannot be written or does not exist.

    In containers, programs often run under a user id that /etc/passwd does not have: HOME is then unset, or `/`.
    Ranks that this process starts inherit the folder.
    """
    home = _home()
    if (home is not None and os.access(home, os.W_OK)) or all(name in os.environ for name in CACHES):
        return
    folder = tempfile.mkdtemp(prefix="tencrop-home-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if home is None:
        os.environ["HOME"] = folder  # wandb refuses to start without
    # An existing HOME stays, although it cannot be written: ~ in paths and the credentials in it must keep working.
    for name in CACHES:
        os.environ.setdefault(name, folder)


def _home() -> Path | None:
    """The home folder, as expanduser finds it; None if neither HOME nor /etc/passwd names one."""
    if "HOME" in os.environ:
        return Path(os.environ["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None

"""Reports a memory-mapped file that is truncated, or whose disk fails, while it is read.

Such an access raises SIGBUS, which kills the process without a message. A C handler (`_mapped.c`) ends it with an error
message and exit code 2 instead. Checking the file's size before each batch would miss truncation within a batch, a
failing disk, and readers elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
import weakref
from pathlib import Path

import numpy as np

from tencrop.config.disk_errors import disk_sentence
from tencrop.config.launcher import PIPE
from tencrop.data.native.decoder import load_library
from tencrop.printable import printable

SHOW_CURSOR = "\n\x1b[?25h"  # a progress bar may have hidden the cursor


def watch(array: np.memmap, path: Path, *, remedy: str) -> None:
    """Make an unreadable page of `array`, which maps the file `path`, end the process with an error message.

    Lasts as long as the file is mapped. remedy: what the message tells the user to do if the file was truncated.
    """
    # The messages are formatted now: a signal handler may not allocate memory.
    # In a rank that train.py started, the handler lets the main process report first.
    main_process = int(os.environ[PIPE].split()[1]) if PIPE in os.environ else 0
    sentences = (
        f"{path}: has become shorter while it was read; {remedy}",
        disk_sentence(OSError(errno.EIO, "", str(path))),
    )
    before = SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    texts = [f"{before}error: {printable(sentence)}\n".encode() for sentence in sentences]
    number = _library().tencrop_watch(
        array.ctypes.data, array.nbytes, array.offset, os.fsencode(path.absolute()), *texts, main_process
    )
    if number >= 0:  # else all entries are in use: the file stays unwatched
        # The mmap object and not the array: views keep the file mapped after the array itself is gone.
        mapping = array._mmap  # type: ignore[attr-defined]
        weakref.finalize(mapping, _library().tencrop_forget, number).atexit = False


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library("_mapped")
    texts = [ctypes.c_char_p] * 3
    library.tencrop_watch.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, *texts, ctypes.c_int32]
    library.tencrop_watch.restype = ctypes.c_int32
    library.tencrop_forget.argtypes = [ctypes.c_int32]
    library.tencrop_forget.restype = None
    return library

"""A sentence where a mapped file is cut short, or its disk fails, while it is read. Called by whoever maps one.

The C handler (`_mapped.c`) ends the process with it and with exit code 2. Reading the file's size before each batch
would miss what happens within one, a failing disk, and whatever reads the file elsewhere.
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
from tencrop.data.native.decoder import built
from tencrop.printable import printable

SHOW_CURSOR = "\n\x1b[?25h"  # which a progress bar had hidden


def watch(array: np.memmap, path: Path, *, mend: str) -> None:
    """From now on, as long as it is mapped, an unreadable page of `array`, of the file `path`, ends the process.

    mend: the end of the sentence where the file has become shorter.
    """
    main_process = int(os.environ[PIPE].split()[1]) if PIPE in os.environ else 0
    sentences = (
        f"{path}: has become shorter while it was read; {mend}",
        disk_sentence(OSError(errno.EIO, "", str(path))),
    )
    before = SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    texts = [f"{before}error: {printable(sentence)}\n".encode() for sentence in sentences]
    number = _library().tencrop_watch(
        array.ctypes.data, array.nbytes, array.offset, os.fsencode(path.absolute()), *texts, main_process
    )
    if number >= 0:
        mapping = array._mmap  # type: ignore[attr-defined]  # views keep it mapped when the array itself is gone
        weakref.finalize(mapping, _library().tencrop_forget, number).atexit = False


@functools.cache
def _library() -> ctypes.CDLL:
    library = built("_mapped")
    texts = [ctypes.c_char_p] * 3
    library.tencrop_watch.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, *texts, ctypes.c_int32]
    library.tencrop_watch.restype = ctypes.c_int32
    library.tencrop_forget.argtypes = [ctypes.c_int32]
    library.tencrop_forget.restype = None
    return library

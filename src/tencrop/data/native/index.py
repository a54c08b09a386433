"""Rewrites JPEGs with restart markers, for data.store.mode=jpeg_indexed: the decoder then jumps to a crop box.

The coefficients are untouched, so the pixels are the same for every decoder; comments and profiles are copied.
`python bench/jpeg_index.py ROOT` compares distances between the markers.
"""

from __future__ import annotations

import ctypes
import functools

from tencrop.data.native.decoder import MESSAGE_BYTES, DecodeError, load_library

# MCUs (8 x 8 to 16 x 16 pixels) between markers: fewer make the file larger without making decoding faster.
INTERVAL = 4


def indexed_jpeg(content: bytes, *, interval: int = INTERVAL) -> bytes:
    """The same image as a baseline JPEG with a restart marker after at most `interval` MCUs, and after every row.

    Raises DecodeError for a damaged JPEG, and for one that baseline coding cannot hold or would give other pixels.
    """
    result, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE_BYTES)
    num_bytes = _library().tencrop_index(content, len(content), interval, ctypes.byref(result), message)
    if num_bytes == 0:
        raise DecodeError(message.value.decode(errors="replace"))
    try:
        return ctypes.string_at(result, num_bytes)
    finally:
        _library().tencrop_free(result)


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library("_index")
    address, text = ctypes.c_void_p, ctypes.c_char_p
    library.tencrop_index.argtypes = [text, ctypes.c_uint64, ctypes.c_int32, address, text]
    library.tencrop_index.restype = ctypes.c_uint64
    library.tencrop_free.argtypes, library.tencrop_free.restype = [address], None
    return library

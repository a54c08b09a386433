"""Decodes images at a reduced size, for verification and color statistics during preparation.

All coefficients of a JPEG are read, so damage and missing data are found as in a full decode; only the transform to
pixels is smaller, by libjpeg's DCT scaling (`_reduce.c`). At 1/8 that saves only a third of the time, because reading
the coefficients takes most of it.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from tencrop.data.native.decoder import MESSAGE_BYTES, DecodeError, load_library

MIN_SIDE = 128  # pixels: the shorter side is not reduced below this


class JpegHeader(NamedTuple):
    height: int
    width: int
    num_components: int  # 1 gray, 3 RGB, 4 CMYK


def jpeg_header(content: bytes) -> JpegHeader:
    """Read a JPEG's header; raises DecodeError."""
    facts, message = (ctypes.c_int32 * 3)(), ctypes.create_string_buffer(MESSAGE_BYTES)
    if not _library().tencrop_jpeg_header(content, len(content), facts, message):
        raise DecodeError(message.value.decode(errors="replace"))
    return JpegHeader(*facts)


def denominator(height: int, width: int) -> int:
    """The largest of 1, 2, 4 and 8 that leaves MIN_SIDE pixels of the shorter side."""
    return next((number for number in (8, 4, 2) if min(height, width) >= number * MIN_SIDE), 1)


def reduced_jpeg(content: bytes, header: JpegHeader, divisor: int) -> npt.NDArray[np.uint8]:
    """Decode an RGB or grayscale JPEG at 1/divisor (1, 2, 4, 8): uint8 [height, width, 3], lengths rounded up.

    Raises DecodeError for any damage at which the loader's decoder would stop.
    """
    height, width = -(-header.height // divisor), -(-header.width // divisor)
    pixels, message = np.empty((height, width, 3), np.uint8), ctypes.create_string_buffer(MESSAGE_BYTES)
    done = _library().tencrop_jpeg_reduced(content, len(content), divisor, pixels.ctypes.data, height, width, message)
    if not done:
        raise DecodeError(message.value.decode(errors="replace"))
    return pixels


def reduced_image(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Reduce a decoded RGB image of any other format by the same factor, by means of blocks."""
    divisor = denominator(image.height, image.width)
    return np.asarray(image.reduce(divisor) if divisor > 1 else image)


def color_sums(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Sums over uint8 [height, width, 3]: r, g, b and the products rr, rg, rb, gg, gb, bb; int64 [9]."""
    height, width, num_channels = pixels.shape
    # width: C sums a row in 32 bits. Rows may have a stride, so a view of a larger image needs no copy.
    assert pixels.dtype == np.uint8 and num_channels == 3 and pixels.strides[1:] == (3, 1) and width < 1 << 16
    sums = np.empty(9, np.int64)
    _library().tencrop_color_sums(pixels.ctypes.data, height, width, pixels.strides[0], sums.ctypes.data)
    return sums


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library("_reduce")
    content, number, address, text = ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p
    library.tencrop_jpeg_header.argtypes = [content, ctypes.c_uint64, address, text]
    library.tencrop_jpeg_reduced.argtypes = [content, ctypes.c_uint64, number, address, number, number, text]
    library.tencrop_color_sums.argtypes = [address, number, number, ctypes.c_int64, address]
    library.tencrop_jpeg_header.restype = library.tencrop_jpeg_reduced.restype = number
    library.tencrop_color_sums.restype = None
    return library

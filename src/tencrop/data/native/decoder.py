"""Python interface of the C decoder (`_decode.c`): decodes, crops, resizes and flips a batch of stored images.

One call decodes a batch on several threads and releases the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util

import numpy as np
import numpy.typing as npt

from tencrop.config import UserError

FILTERS = ("nearest", "box", "bilinear", "bicubic")  # in the order of the enum in _resample.h
MESSAGE_BYTES = 200  # JMSG_LENGTH_MAX of libjpeg
SAMPLE = np.dtype(
    [
        ("payload", "<u8"),  # an address
        ("payload_bytes", "<u8"),
        ("slot", "<u8"),  # an address
        ("slot_stride", "<i8"),
        ("slot_size", "<i4", 2),
        ("mode", "<i4"),
        ("stored_size", "<i4", 2),
        ("box", "<i4", 4),
        ("out_size", "<i4", 2),
        ("mirrored", "<i4"),
    ],
    align=True,
)  # struct Sample of _decode.c; align=True pads as the C compiler does


class DecodeError(UserError):
    """A stored image is damaged. `position` is its row in the batch; the loader adds the sample's name."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


def decode_batch(
    images: npt.NDArray[np.uint8],
    data: npt.NDArray[np.uint8],
    *,
    pointers: npt.NDArray[np.uint64],
    payload_bytes: npt.NDArray[np.uint64],
    modes: npt.NDArray[np.uint8],
    stored_sizes: npt.NDArray[np.int32],
    boxes: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    flips: npt.NDArray[np.bool_],
    filter: str,
    num_threads: int,
) -> None:
    """Decode B images and write their crops into `images`, uint8 [B, H, W, 3] RGB.

    data: holds the payloads (a memory-mapped .beton file). Image b is the `payload_bytes[b]` bytes from `pointers[b]`
        on, stored in mode `modes[b]` (beton.JPEG or RAW) at `stored_sizes[b]` (height, width).
    boxes: int32 [B, 4], the crops, in stored pixels.
    sizes: int32 [B, 2], the sizes that they are resized to, by `filter` exactly as in Pillow (bit for bit).
    flips: bool [B], which are flipped horizontally.

    An image smaller than its slot is in the upper left; the rest of the slot becomes 0.
    Raises DecodeError for the first image that is damaged.
    """
    num_images, slot_height, slot_width, num_channels = images.shape
    stored = stored_sizes.astype(np.int64)
    assert images.dtype == data.dtype == np.uint8 and num_channels == 3 and filter in FILTERS and num_threads > 0
    # C trusts these addresses: a wrong one would overwrite memory instead of raising. The checks cost microseconds.
    assert images.flags.c_contiguous and images.flags.writeable and data.flags.c_contiguous
    assert np.all((boxes[:, :2] >= 0) & (boxes[:, 2:] >= 1) & (boxes[:, :2] + boxes[:, 2:] <= stored)), (
        "a box exceeds its image"
    )
    assert np.all((sizes >= 1) & (sizes <= (slot_height, slot_width))), "an output exceeds its slot"
    assert np.all(pointers + payload_bytes <= data.size), "a payload exceeds the file"

    # One array of structs, filled column by column: no Python loop over the samples.
    samples = np.zeros(num_images, SAMPLE)
    samples["payload"] = data.ctypes.data + pointers.astype(np.uint64)
    samples["payload_bytes"] = payload_bytes
    samples["slot"] = images.ctypes.data + images.strides[0] * np.arange(num_images, dtype=np.uint64)
    samples["slot_stride"] = images.strides[1]
    samples["slot_size"] = slot_height, slot_width
    samples["mode"] = modes
    samples["stored_size"] = stored_sizes
    samples["box"] = boxes
    samples["out_size"] = sizes
    samples["mirrored"] = flips
    # `images`, `data` and `samples` stay referenced by this frame during the call, so their memory cannot be freed.
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    failed = _library().tencrop_decode(samples.ctypes.data, num_images, FILTERS.index(filter), num_threads, message)
    if failed >= 0:
        raise DecodeError(message.value.decode(errors="replace"), failed)


def read_ahead(
    data: npt.NDArray[np.uint8], *, pointers: npt.NDArray[np.uint64], payload_bytes: npt.NDArray[np.uint64]
) -> None:
    """Ask the kernel to read payloads of a memory-mapped file into the page cache; does not wait for them."""
    assert np.all(pointers + payload_bytes <= data.size), "a payload exceeds the file"
    # One call for the batch: madvise returns at once, and the kernel reads many ranges from the disk in parallel.
    pointers, payload_bytes = (np.ascontiguousarray(array, np.uint64) for array in (pointers, payload_bytes))
    _library().tencrop_read_ahead(data.ctypes.data, pointers.ctypes.data, payload_bytes.ctypes.data, len(pointers))


@functools.cache
def _library() -> ctypes.CDLL:
    return declare_functions(load_library("_decode"))


def load_library(name: str) -> ctypes.CDLL:
    """Load a C library of this package, which the installation builds (setuptools ext-modules)."""
    # ctypes.CDLL releases the GIL in every call. The libraries know nothing of Python, so one build fits all versions.
    spec = importlib.util.find_spec(f"tencrop.data.native.{name}")
    if spec is None or spec.origin is None:
        raise ImportError(f"tencrop.data.native.{name} is not built; install the package (make, or pip install -e .)")
    return ctypes.CDLL(spec.origin)


def declare_functions(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the function signatures of a build of _decode.c."""
    library.tencrop_decode.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3, ctypes.c_char_p]
    library.tencrop_decode.restype = ctypes.c_int32
    library.tencrop_read_ahead.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int32]
    library.tencrop_read_ahead.restype = None
    return library

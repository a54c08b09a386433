"""A decoder operation that feeds our plan into stock ffcv's compiled pipeline.

Importing this module imports ffcv, numba and OpenCV (seconds) and sets torch's number of threads to 1. ffcv_loader.py
imports it only for data.loader=ffcv, and restores that number.

ffcv compiles a pipeline once and draws crops and flips inside it, from a generator that cannot be seeded. Our operation
draws nothing: it reads boxes and flips from a table at a fixed memory address, which the loader fills batch by batch.
It needs the address because numba copies an array that compiled code refers to by name, when it compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numba
import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.libffcv import ctypes_imdecode, resize_crop
from ffcv.loader import Loader
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.traversal_order.base import TraversalOrder
from ffcv.utils import cast_int_to_byte_ptr

from tencrop.data.store.beton import Beton

# Columns of a row of the table, int64: sample index (negative: skip the row), box in stored pixels, size of the resized
# box, whether it is flipped, and the slot that receives the image: address, height and width.
SAMPLE, TOP, LEFT, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, FLIP, ADDRESS, SLOT_HEIGHT, SLOT_WIDTH = range(11)
NUM_COLUMNS = 11
NOTHING = -1
# The number of cores that this process may use, or the environment variable NUMBA_NUM_THREADS.
MAX_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def stock_loader(
    beton: Beton, table: np.ndarray, *, num_rows: int, batch_size: int, num_workers: int, batches_ahead: int
) -> Loader:
    """ffcv's Loader of a .beton file with our `PlannedDecoder`; yields (status uint8 [B, 1],) for each batch.

    `num_rows` is the number of rows of the longest iteration; set `loader.traversal_order.num_rows` before a shorter
    one. Row r of an iteration is row r modulo len(`table`) of the table, a ring. Labels come from the split, so their
    field is not decoded.
    """
    return Loader(
        str(beton.path),
        batch_size=batch_size,
        num_workers=num_workers,
        os_cache=True,  # memory-map the file, as our own loader does
        order=RowOrder(num_rows, len(table)),
        drop_last=False,
        batches_ahead=batches_ahead,
        seed=0,  # unused by our order; without it ffcv draws one from NumPy's global generator
        pipelines={beton.image_field: [PlannedDecoder(table)], beton.label_field: None},
    )


class RowOrder(TraversalOrder):
    """Yields rows of the table in place of sample indices."""

    def __init__(self, num_rows: int, table_rows: int) -> None:
        self.num_rows, self.table_rows = num_rows, table_rows

    def __call__(self, loader: Loader) -> RowOrder:
        return self  # ffcv expects a class and instantiates it with its loader

    def sample_order(self, epoch: int) -> np.ndarray:
        return np.arange(self.num_rows) % self.table_rows


class PlannedDecoder(SimpleRGBImageDecoder):  # the base class, because ffcv prepends it to any other operation
    """Decodes, crops, resizes and flips the samples listed in the table, with ffcv's own functions.

    Writes each image to the slot that the table gives and returns a status: 1 if libjpeg-turbo reports damage, which
    ffcv's own decoders ignore.
    """

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        assert table.dtype == np.int64 and table.flags.c_contiguous and table.shape[1] == NUM_COLUMNS
        self.table = table  # keeps the memory alive: compiled code holds only its address

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        state = replace(previous_state, jit_mode=True, shape=(1,), dtype=np.dtype("u1"))
        return state, AllocationQuery((1,), np.dtype("u1"))

    def generate_code(self) -> Callable:
        # numba compiles `decode`: these names become constants of the compiled code
        address, num_bytes, table_rows = self.table.ctypes.data, self.table.nbytes, len(self.table)
        jpeg = IMAGE_MODES["jpg"]
        mem_read = self.memory_read
        parallel_range = Compiler.get_iterator()
        decode_jpeg_c, resize_crop_c, place_c = (Compiler.compile(f) for f in (_decode_jpeg, resize_crop, _place))

        def decode(rows, status, metadata, storage_state):
            memory = numba.carray(cast_int_to_byte_ptr(address), (num_bytes,))
            table = memory.view(np.int64).reshape(table_rows, NUM_COLUMNS)
            for number in parallel_range(len(rows)):
                row = table[rows[number]]
                status[number, 0] = 0
                if row[SAMPLE] >= 0:
                    field = metadata[row[SAMPLE]]
                    stored = mem_read(field["data_ptr"], storage_state)
                    height, width = np.uint32(field["height"]), np.uint32(field["width"])
                    if field["mode"] == jpeg:
                        # The whole image, as in ffcv's decoders. They reserve B times the largest image of the file
                        # for it, which for ImageNet's originals is hundreds of gigabytes; we allocate one at a time.
                        whole = np.empty((height, width, 3), np.uint8)
                        status[number, 0] = decode_jpeg_c(stored, whole)
                    else:
                        whole = stored.reshape(height, width, 3)
                    image = np.empty((row[OUT_HEIGHT], row[OUT_WIDTH], 3), np.uint8)
                    bottom, right = row[TOP] + row[HEIGHT], row[LEFT] + row[WIDTH]
                    resize_crop_c(whole, row[TOP], bottom, row[LEFT], right, image)
                    # Three-dimensional, because ffcv makes numba treat every one-dimensional byte array as read-only
                    slot_shape = (row[SLOT_HEIGHT], row[SLOT_WIDTH], 3)
                    place_c(image, numba.carray(cast_int_to_byte_ptr(row[ADDRESS]), slot_shape), row[FLIP])
            return status[: len(rows)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _decode_jpeg(stored, whole):
    """Decode a JPEG into `whole`; return whether it is damaged."""
    # This is ffcv's imdecode, copied: calling it with its default arguments from compiled code makes numba raise a
    # KeyError when the interpreter exits.
    height, width, _ = whole.shape
    source, target = stored.ctypes.data, whole.ctypes.data
    error = ctypes_imdecode(source, stored.size, height, width, target, height, width, 0, 0, 1, 1, False, False)
    return error != 0


def _place(image, slot, flip):
    """Copy the image, flipped or not, to the upper left of its slot and set the rest of the slot to 0."""
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            source = width - 1 - x if flip else x
            for channel in range(3):
                slot[y, x, channel] = image[y, source, channel]
        slot[y, width:] = 0
    slot[height:] = 0

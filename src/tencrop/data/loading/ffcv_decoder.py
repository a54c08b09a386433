"""The decoder operation that feeds our plan into stock ffcv's compiled pipeline.

Importing this imports ffcv, numba and OpenCV (seconds) and sets torch's number of threads to 1; ffcv_loader.py imports
it where data.loader=ffcv, and restores that number.

ffcv compiles a pipeline once and draws crops and flips inside it, from a generator that cannot be seeded. This
operation draws nothing. It reads what to do from a table at a fixed address, which the loader fills batch by batch:
numba copies an array that compiled code refers to by name, so only an address shows it what was written later.
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

# columns of a row of the table, int64: the sample (negative: nothing to do), its box in stored pixels, the size that
# the box is resized to, whether it is mirrored, and the memory that takes the image: address, height and width
SAMPLE, TOP, LEFT, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, FLIP, ADDRESS, SLOT_HEIGHT, SLOT_WIDTH = range(11)
NUM_COLUMNS = 11
NOTHING = -1
# the cores that this process may run on, or what the user's environment says
MAX_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def stock_loader(
    beton: Beton, table: np.ndarray, *, num_rows: int, batch_size: int, num_workers: int, batches_ahead: int
) -> Loader:
    """ffcv's Loader of a file whose images our `PlannedDecoder` decodes; yields (status uint8 [B, 1],).

    The longest iteration has `num_rows` rows, `batch_size` a batch; the next one has `loader.traversal_order.num_rows`.
    Row r of an iteration is row r modulo len(`table`) of the table. Labels come from the split: their field is not
    decoded.
    """
    return Loader(
        str(beton.path),
        batch_size=batch_size,
        num_workers=num_workers,
        os_cache=True,  # the file is memory-mapped, as by our own loader
        order=RowOrder(num_rows, len(table)),
        drop_last=False,
        batches_ahead=batches_ahead,
        seed=0,  # of an order that nobody draws; without it ffcv takes a number from NumPy's global generator
        pipelines={beton.image_field: [PlannedDecoder(table)], beton.label_field: None},
    )


class RowOrder(TraversalOrder):
    """Rows of the table in place of sample indices. ffcv calls an instance with its loader, as it would a class."""

    def __init__(self, num_rows: int, table_rows: int) -> None:
        self.num_rows, self.table_rows = num_rows, table_rows

    def __call__(self, loader: Loader) -> RowOrder:
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        return np.arange(self.num_rows) % self.table_rows


class PlannedDecoder(SimpleRGBImageDecoder):  # else ffcv puts that decoder before it
    """Decodes, cuts, resizes and mirrors the samples that the table names, by ffcv's own functions.

    Writes the images where the table says and returns a status each: 1 where libjpeg-turbo reports damage, which
    ffcv's own decoders ignore.
    """

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        assert table.dtype == np.int64 and table.flags.c_contiguous and table.shape[1] == NUM_COLUMNS
        self.table = table  # keeps the memory alive

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        state = replace(previous_state, jit_mode=True, shape=(1,), dtype=np.dtype("u1"))
        return state, AllocationQuery((1,), np.dtype("u1"))

    def generate_code(self) -> Callable:
        # compiled with numba: names below are constants of the compiled code
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
                        # Whole, as ffcv does. Its decoders keep B times the largest image of the file for this: with
                        # ImageNet's originals hundreds of gigabytes.
                        whole = np.empty((height, width, 3), np.uint8)
                        status[number, 0] = decode_jpeg_c(stored, whole)
                    else:
                        whole = stored.reshape(height, width, 3)
                    image = np.empty((row[OUT_HEIGHT], row[OUT_WIDTH], 3), np.uint8)
                    bottom, right = row[TOP] + row[HEIGHT], row[LEFT] + row[WIDTH]
                    resize_crop_c(whole, row[TOP], bottom, row[LEFT], right, image)
                    # ffcv declares one-dimensional arrays of bytes to be read-only, all of numba's in this process
                    slot_shape = (row[SLOT_HEIGHT], row[SLOT_WIDTH], 3)
                    place_c(image, numba.carray(cast_int_to_byte_ptr(row[ADDRESS]), slot_shape), row[FLIP])
            return status[: len(rows)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _decode_jpeg(stored, whole):
    """Whether the JPEG is damaged. This is ffcv's imdecode, whose defaults must not be passed from compiled code: numba
    makes types of them, and raises a KeyError over these when the interpreter ends."""
    height, width, _ = whole.shape
    source, target = stored.ctypes.data, whole.ctypes.data
    error = ctypes_imdecode(source, stored.size, height, width, target, height, width, 0, 0, 1, 1, False, False)
    return error != 0


def _place(image, slot, flip):
    """The image, mirrored or not, into the upper left of its slot; the rest of the slot becomes 0."""
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            source = width - 1 - x if flip else x
            for channel in range(3):
                slot[y, x, channel] = image[y, source, channel]
        slot[y, width:] = 0
    slot[height:] = 0

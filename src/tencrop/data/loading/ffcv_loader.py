"""Stock ffcv's Loader over the same .beton file, driven by our plan (data.loader=ffcv).

Samples, boxes, flips and digest equal those of the other loaders. The pixels are ffcv's: libjpeg-turbo's fast inverse
DCT, and OpenCV's area resize whatever filter the recipe names. Because pixels differ, the loader is part of the
learning hash.
"""

from __future__ import annotations

import contextlib
import queue
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tencrop.config import UserError
from tencrop.config.loader import HOW_TO_INSTALL
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.plan import Plan
from tencrop.data.loading.loader import PLANNED_AHEAD, Loader, Slot, batch_of
from tencrop.data.native.decoder import DecodeError, read_ahead
from tencrop.data.sampling.rng import Index
from tencrop.data.store.manifest import Split

# Three batches are in flight: ffcv decodes one, a finished one waits in its queue, and we write the plan of a third.
BATCHES_AHEAD = PLANNED_AHEAD - 1
NUM_BLOCKS = PLANNED_AHEAD + 1
WAIT_S = 1.0  # wait this long for a batch before checking that ffcv's thread is still alive


class FfcvLoader(Loader):
    """Reads a .beton file through ffcv. Batches stay valid as long as those of `Loader`; memory is three slots more.

    `filter` is ignored: ffcv has one resize only. The first batch takes about 3 s longer, while numba compiles.
    Raises UserError if ffcv cannot be imported or has fewer threads than `num_threads`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        most = ffcv_decoder().MAX_THREADS
        if self._num_threads > most:
            raise UserError(
                f"hardware.workers={self._num_threads}: data.loader=ffcv has at most {most} threads here (numba's);"
                f" set hardware.workers={most}"
            )
        self._feed: _Feed | None = None  # kept from epoch to epoch: a new one would be compiled again

    def _produce(self, batches: Sequence[Index] | Index, epoch: int) -> Generator[Batch, None, None]:
        if self._feed is None:
            # Size the table for the whole epoch: after a resume `batches` is only the rest of it.
            whole = self._batch_sampler(epoch)
            batch_size = max((len(batch) for batch in whole), default=1)
            self._feed = _Feed(self._split, len(whole), batch_size, self._num_threads, self._pin_memory)
        self._feed.begin(len(batches))
        # Finalizers run last-in first-out at exit: the producer's, which waits for batches of ffcv, runs before this.
        end = weakref.finalize(self, self._feed.end)
        try:
            yield from super()._produce(batches, epoch)
        finally:
            end()

    def _steps(self, epoch: int) -> tuple[Callable[[Index], Plan], Callable[[Plan, Slot], Batch]]:
        split, plan, feed, hash_pixels = self._split, self._plan, self._feed, self._hash_pixels
        assert feed is not None
        return (
            lambda index: feed.write(plan(index, epoch)),
            lambda plan, slot: batch_of(feed.take(plan, slot), split, plan, hash_pixels=hash_pixels),
        )


class _Feed:
    """The table that ffcv's thread reads and the memory that it fills: NUM_BLOCKS batches, used as a ring.

    The producer's thread calls `write` PLANNED_AHEAD times and then alternates `take` and `write`. ffcv starts a batch
    when the second batch before it was taken; by then its rows are in the table.
    """

    def __init__(self, split: Split, num_batches: int, batch_size: int, num_threads: int, pin_memory: bool) -> None:
        self._split, self._batch_size, self._decoder = split, batch_size, ffcv_decoder()
        self._blocks = [Slot(pin_memory) for _ in range(NUM_BLOCKS)]
        self._images: list[Tensor] = [torch.empty(0)] * NUM_BLOCKS
        self._table = np.zeros((NUM_BLOCKS * batch_size, self._decoder.NUM_COLUMNS), np.int64)
        with torch_threads_kept():
            self._loader = self._decoder.stock_loader(
                split.beton, self._table, num_rows=num_batches * batch_size, batch_size=batch_size,
                num_workers=num_threads, batches_ahead=BATCHES_AHEAD,
            )  # fmt: skip
        self._iterator: Any = None

    def begin(self, num_batches: int) -> None:
        """Prepare an iteration over `num_batches`. Called in the consumer's thread, whose torch.get_num_threads it
        remembers: ffcv sets that number to 1, and it would slow down every CPU operation of training."""
        assert self._iterator is None
        self._loader.traversal_order.num_rows = num_batches * self._batch_size
        self._num_written = self._num_taken = 0
        self._num_torch_threads = torch.get_num_threads()

    def write(self, plan: Plan) -> Plan:
        """Write the rows of the next batch to the table, and ask the kernel to read its bytes."""
        decoder, beton, num_images = self._decoder, self._split.beton, len(plan.index)
        read_ahead(beton.data, pointers=beton.pointers[plan.index], payload_bytes=beton.payload_bytes[plan.index])
        block, self._num_written = self._num_written % NUM_BLOCKS, self._num_written + 1
        height, width = (int(length) for length in plan.sizes.max(axis=0))
        images = self._images[block] = self._blocks[block].images(num_images, height, width)
        rows = self._table[block * self._batch_size :][: self._batch_size]
        rows[num_images:, decoder.SAMPLE] = decoder.NOTHING  # a shorter batch: ffcv's batch size is fixed
        rows = rows[:num_images]
        rows[:, decoder.SAMPLE] = plan.index
        rows[:, decoder.TOP : decoder.WIDTH + 1] = plan.boxes
        rows[:, decoder.OUT_HEIGHT : decoder.OUT_WIDTH + 1] = plan.sizes
        rows[:, decoder.FLIP] = plan.flips
        # Each image's slot: the address of its first pixel, and the common height and width of the batch.
        rows[:, decoder.ADDRESS] = images.data_ptr() + 3 * height * width * np.arange(num_images)
        rows[:, decoder.SLOT_HEIGHT : decoder.SLOT_WIDTH + 1] = height, width
        return plan

    def take(self, plan: Plan, slot: Slot) -> Tensor:
        """Wait for the next batch and return its images, uint8 [B, H, W, 3], in the memory of `slot`."""
        block, self._num_taken = self._num_taken % NUM_BLOCKS, self._num_taken + 1
        if self._iterator is None:
            self._iterator = iter(self._loader)  # ffcv's thread starts
            status = self._next()
            # ffcv's thread has set torch's number of threads to 1, which threads started later would inherit. Undo it;
            # the consumer waits for this batch, so it has started no thread in between.
            torch.set_num_threads(self._num_torch_threads)
        else:
            status = self._next()
        # ffcv would train on a damaged image; our decoder operation reports it.
        if damaged := np.flatnonzero(status[: len(plan.index)]).tolist():
            sample = int(plan.index[damaged[0]])
            raise DecodeError(
                f"{self._split.beton.path}: image {self._split.names(sample)} (sample {sample}) is damaged: ffcv cannot"
                " decode it; prepare the data again (prepare.py)",
                damaged[0],
            )
        slot.swap(self._blocks[block])  # exchange the memory instead of copying the pixels
        return self._images[block]

    def end(self) -> None:
        """Stop ffcv's thread and wait for it: it writes into our memory, so that memory must not be freed before."""
        # ffcv's thread checks its stop flag only while its queue is full, and blocks at its end until there is room for
        # an end marker. So empty the table, which makes the remaining batches cheap, and drain the queue until it ends.
        iterator, self._iterator = self._iterator, None
        self._table[:, self._decoder.SAMPLE] = self._decoder.NOTHING
        if iterator is None:
            return
        iterator.close()
        while iterator.is_alive():
            with contextlib.suppress(queue.Empty):
                iterator.output_queue.get_nowait()
            iterator.join(timeout=0.01)

    def _next(self) -> np.ndarray:
        """Return the status of each image of the next batch. ffcv's own __next__ waits for ever if its thread died."""
        while True:
            try:
                _, (status,) = self._iterator.output_queue.get(timeout=WAIT_S)
                return status
            except queue.Empty:
                if not self._iterator.is_alive():
                    raise RuntimeError("ffcv's thread died before its last batch; its traceback is above") from None


def ffcv_decoder() -> ModuleType:
    """Import and return the module that needs ffcv; UserError with the command to install it if the import fails."""
    with torch_threads_kept():
        try:
            from tencrop.data.loading import ffcv_decoder
        except (ImportError, OSError) as error:  # OSError: ctypes cannot load a shared library
            raise UserError(f"data.loader=ffcv: ffcv cannot be imported ({error}); {HOW_TO_INSTALL}") from error
    return ffcv_decoder


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore torch's number of threads on exit; importing ffcv sets it to 1."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)

"""The data loader: reads batches of uint8 images from a .beton file, decoded ahead of time by one producer thread.

`BaseLoader` is the interface of all three loaders (the others are in reference.py and ffcv_loader.py): given the same
batch sampler and the same plan, they yield the same samples in the same order with the same crop boxes.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.pipeline import DEVICE_PARAMS
from tencrop.data.augmentation.plan import Plan
from tencrop.data.native.decoder import DecodeError, decode_batch, read_ahead
from tencrop.data.sampling.digest import sample_hashes
from tencrop.data.sampling.rng import Index
from tencrop.data.sampling.sampler import MAX_PADDED_BYTES
from tencrop.data.store.manifest import Split

# Batches whose bytes the kernel is asked to read while another batch is decoded. Without this a cold disk is read one
# image at a time: page faults within a thread are served one after the other.
PLANNED_AHEAD = 2


class BaseLoader:
    """Base class of the loaders: yields the micro-batches of an epoch from any micro-batch on.

    split: the prepared split to read.
    batch_sampler: epoch -> this rank's micro-batches in order, an int64 array each. In training these are positions in
        the epoch, the same for every epoch; in evaluation they are sample indices. Only `plan` interprets them.
    plan: (one of these arrays, epoch) -> what to do to each of its samples.
    filter: the resize filter, a name of Pillow's `Image.Resampling`.
    num_threads: decoding threads (worker processes of the torch loader).
    prefetch: number of batches kept ready.
    hash_pixels: include the pixels in `Batch.hashes`, not only what was planned.
    """

    def __init__(
        self,
        split: Split,
        batch_sampler: Callable[[int], Sequence[Index] | Index],
        plan: Callable[[Index, int], Plan],
        *,
        filter: str,
        num_threads: int,
        prefetch: int = 3,
        pin_memory: bool = False,
        hash_pixels: bool = False,
    ) -> None:
        self._split, self._batch_sampler, self._plan = split, batch_sampler, plan
        self._filter, self._num_threads = filter, num_threads
        self._prefetch, self._pin_memory, self._hash_pixels = prefetch, pin_memory, hash_pixels
        self._running: Generator[Batch, None, None] | None = None

    def num_batches(self, epoch: int) -> int:
        """Number of micro-batches in the whole epoch on this rank."""
        return len(self._batch_sampler(epoch))

    def batches(self, epoch: int, first: int = 0) -> Generator[Batch, None, None]:
        """Yield the micro-batches of `epoch` from number `first` on.

        The loader keeps no position of its own: the caller derives it from the optimizer step, so nothing can go out of
        step with the checkpoint. Micro-batches before `first` are neither read nor decoded, so resuming at the end of
        an epoch costs no more than at its beginning. One iteration at a time: a new one ends the previous one.
        """
        self.close()
        self._running = self._produce(self._batch_sampler(epoch)[first:], epoch)
        with contextlib.closing(self._running) as batches:
            yield from batches

    def close(self) -> None:
        """End an unfinished iteration and its threads or processes; `batches` can be called again."""
        if self._running is not None:
            self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self, batches: Sequence[Index] | Index, epoch: int) -> Generator[Batch, None, None]:
        """Yield the given micro-batches. Closing the generator must end its threads and processes."""
        raise NotImplementedError


class Loader(BaseLoader):
    """Reads a .beton file through the C decoder (data.loader=beton).

    A batch's images stay valid until the consumer asks for the second batch after it, or begins a new iteration; then
    their memory is overwritten. On a GPU the loader first waits for copies that were queued on the current stream.

    Memory: `prefetch` + 2 slots, each as large as the largest batch that it held. For 256 crops of 224 x 224 pixels
    that is 5 x 38.5 MB; for whole images at most 5 x 134 MB (sampler.MAX_PADDED_BYTES). Memory for a single larger
    image is freed after use.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Two more than `prefetch`: the consumer holds the current batch and the one before it, whose copy to the
        # device may still be running.
        self._slots = [Slot(self._pin_memory) for _ in range(self._prefetch + 2)]

    def _produce(self, batches: Sequence[Index] | Index, epoch: int) -> Generator[Batch, None, None]:
        for slot in self._slots:
            slot.release()  # batches of an abandoned iteration may still be in flight to the device
        device = torch.cuda.current_device() if self._pin_memory else None
        producer = _Producer(batches, *self._steps(epoch), self._slots, device=device)
        # A finalizer, so that the thread also ends when the loader is collected or the interpreter exits; a thread that
        # still runs native code during shutdown can crash the process.
        end = weakref.finalize(self, producer.end)
        try:
            for _ in range(len(batches)):
                yield producer.next()
        finally:
            end()

    def _steps(self, epoch: int) -> tuple[Callable[[Index], Plan], Callable[[Plan, Slot], Batch]]:
        """The two functions that the thread runs: plan a batch, and decode a planned one."""
        # The functions capture the fields and not `self`: a reference from the running thread to the loader would keep
        # an abandoned loader, its thread and its slots alive for ever.
        split, plan = self._split, self._plan
        options: Any = {"filter": self._filter, "num_threads": self._num_threads, "hash_pixels": self._hash_pixels}
        return (
            lambda index: _planned(split, plan(index, epoch)),
            lambda plan, slot: _decoded(split, plan, slot, **options),
        )


def _planned(split: Split, plan: Plan) -> Plan:
    """Return the plan unchanged, after asking the kernel to read the bytes of its samples."""
    beton = split.beton
    read_ahead(beton.data, pointers=beton.pointers[plan.index], payload_bytes=beton.payload_bytes[plan.index])
    return plan


def _decoded(split: Split, plan: Plan, slot: Slot, *, filter: str, num_threads: int, hash_pixels: bool) -> Batch:
    height, width = plan.sizes.max(axis=0)  # in evaluation sizes differ: smaller images are padded with 0
    images = slot.images(len(plan.index), int(height), int(width))
    beton = split.beton
    try:
        decode_batch(
            images.numpy(),
            beton.data,
            pointers=beton.pointers[plan.index],
            payload_bytes=beton.payload_bytes[plan.index],
            modes=beton.modes[plan.index],
            stored_sizes=split.stored_sizes[plan.index],
            boxes=plan.boxes,
            sizes=plan.sizes,
            flips=plan.flips,
            filter=filter,
            num_threads=num_threads,
        )
    except DecodeError as error:
        sample = int(plan.index[error.position])
        raise DecodeError(
            f"{beton.path}: image {split.names(sample)} (sample {sample}) is damaged: {error};"
            " prepare the data again (prepare.py)",
            error.position,
        ) from error
    return batch_of(images, split, plan, hash_pixels=hash_pixels)


def batch_of(images: Tensor, split: Split, plan: Plan, *, hash_pixels: bool) -> Batch:
    """Assemble a Batch: the images, their labels, the plan and the sample hashes."""
    labels = split.labels[plan.index]
    # Parameters are drawn in float64 and used in float32. Round before hashing, so that the digest covers exactly the
    # values that the device receives.
    params = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in plan.params.items()}
    fields = (labels, plan.index, plan.boxes, plan.sizes, plan.flips, *params.values())
    # In the loader's thread, so that hashing overlaps with training.
    hashes = sample_hashes(fields, images.numpy() if hash_pixels else None)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(params[name])) for name in params.keys() & DEVICE_PARAMS}
    return Batch(
        images=images,
        labels=torch.from_numpy(labels),
        index=plan.index,
        boxes=plan.boxes,
        flips=plan.flips,
        sizes=plan.sizes,
        params=params | tensors,
        hashes=hashes,
    )


class Slot:
    """Reusable memory for the images of one batch; grows to the largest batch, but does not keep an oversized image.

    Reuse matters: pinning memory is a system call, and fresh pageable memory costs a page fault every 4 KiB.
    """

    def __init__(self, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def images(self, num_images: int, height: int, width: int) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        num_bytes = num_images * height * width * 3
        memory = self._memory
        if memory.numel() < num_bytes:
            self._memory = memory = torch.empty(0, dtype=torch.uint8)  # free the old memory before allocating the new
            memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pin_memory)
            if num_images > 1 or num_bytes <= MAX_PADDED_BYTES:
                self._memory = memory
        return memory[:num_bytes].view(num_images, height, width, 3)

    def swap(self, other: Slot) -> None:
        """Exchange memory with `other`, after waiting for copies of this slot's images to the device."""
        if self._copied is not None:
            self._copied.synchronize()
        self._memory, other._memory = other._memory, self._memory

    def release(self) -> None:
        """Mark this point of the consumer's stream: `images` waits for it before the memory is overwritten."""
        # Copies from pinned memory are asynchronous. Without the event the thread would overwrite pixels that the
        # device has not read yet, and training would silently see wrong images.
        if self._pin_memory:
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()


class _Producer:
    """A thread that decodes batches ahead of the consumer into a ring of slots, and plans PLANNED_AHEAD further.

    device: the consumer's GPU; None if memory is not pinned. A new thread starts with GPU 0 as its current device, and
    pinning memory or waiting for an event there would create a CUDA context: about 0.5 GB of GPU 0 for each rank of
    the machine.
    """

    def __init__(
        self,
        batches: Sequence[Index] | Index,
        plan: Callable[[Index], Plan],
        make: Callable[[Plan, Slot], Batch],
        slots: list[Slot],
        *,
        device: int | None,
    ) -> None:
        self._batches, self._plan, self._make, self._device = batches, plan, make, device
        # SimpleQueue and not Queue: `end` runs in a finalizer, which may interrupt a thread that holds Queue's lock
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        self._ready: SimpleQueue[tuple[Batch, Slot] | BaseException] = SimpleQueue()
        self._held: deque[Slot] = deque()  # slots of the batches that the consumer may still read
        self._ended = False
        for slot in slots:
            self._free.put(slot)
        self._thread = threading.Thread(target=self._run, name="tencrop-loader", daemon=True)
        self._thread.start()

    def next(self) -> Batch:
        """Return the next batch; re-raises an exception of the thread."""
        if len(self._held) == 2:
            slot = self._held.popleft()
            slot.release()
            self._free.put(slot)
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        batch, slot = item
        self._held.append(slot)
        return batch

    def end(self) -> None:
        """Stop the thread and wait for it, at most for the batch that it is decoding. May be called twice."""
        self._ended = True
        self._free.put(None)  # wakes a thread that waits for a free slot
        # The garbage collector may run the finalizer in the thread itself, which cannot wait for its own end.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            for plan in self._plans():
                slot = self._free.get()
                if slot is None or self._ended:
                    return
                self._ready.put((self._make(plan, slot), slot))
        except BaseException as error:  # the consumer would otherwise wait for ever
            self._ready.put(error)

    def _plans(self) -> Iterator[Plan]:
        """Plan (and read ahead) up to PLANNED_AHEAD batches before the one that is decoded."""
        waiting: deque[Plan] = deque()
        for index in self._batches:
            waiting.append(self._plan(index))
            if len(waiting) > PLANNED_AHEAD:
                yield waiting.popleft()
        yield from waiting

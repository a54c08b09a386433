"""The loader: batches of uint8 images out of a .beton file, decoded ahead of time by one producer thread.

Called by the data module. `Batch` and `BaseLoader` are the contract that reference.py and ffcv_loader.py fulfil too:
given the same batches of indices and the same plan, all yield the same samples in the same order and the same boxes.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tencrop.data.augmentation.batch import DEVICE_FIELDS, Batch
from tencrop.data.augmentation.plan import Plan
from tencrop.data.native.decoder import DecodeError, decode_batch, read_ahead
from tencrop.data.sampling.digest import sample_hashes
from tencrop.data.sampling.rng import Index
from tencrop.data.sampling.sampler import MAX_PADDED_BYTES
from tencrop.data.store.manifest import Split

PLANNED_AHEAD = 2  # batches whose bytes are asked for while another one is decoded


class BaseLoader:
    """What all loaders are: an iterable over the micro-batches of one epoch, which knows its place.

    `batches` gives, for an epoch, this rank's arrays of sample indices in order; `plan` what to do to one of them.
    `filter` is Pillow's of that name. `num_threads` decode; `prefetch` batches wait ready.
    `hash_pixels`: the samples' hashes are of their pixels too.
    A new iteration begins at the first batch of `epoch`, or after what `load_state_dict` says was consumed; the end
    of one moves `epoch` on. One iteration at a time: a new one ends the last.
    """

    def __init__(
        self,
        split: Split,
        batches: Callable[[int], Sequence[Index] | Index],
        plan: Callable[[Index, int], Plan],
        *,
        filter: str,
        num_threads: int,
        prefetch: int = 3,
        pin_memory: bool = False,
        hash_pixels: bool = False,
    ) -> None:
        self.epoch = 0
        self._split, self._batches, self._plan = split, batches, plan
        self._filter, self._num_threads = filter, num_threads
        self._prefetch, self._pin_memory, self._hash_pixels = prefetch, pin_memory, hash_pixels
        self._position = (0, 0)  # epoch, batches of it that were consumed
        self._resuming = False
        self._cached: tuple[int, Sequence[Index] | Index] | None = None
        self._running: Generator[Batch, None, None] | None = None

    def __len__(self) -> int:
        """Micro-batches of the whole epoch on this rank, also after a resume within it."""
        return len(self._batches_of(self.epoch))

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        epoch, resuming, self._resuming = self.epoch, self._resuming, False
        first = self._position[1] if resuming and self._position[0] == epoch else 0
        self._position = (epoch, first)
        self._running = self._produce(self._batches_of(epoch)[first:], epoch)
        with contextlib.closing(self._running) as batches:
            for number, batch in enumerate(batches, first + 1):
                self._position = (epoch, number)
                yield batch
        if self._position == (epoch, len(self._batches_of(epoch))):
            self._position = (epoch + 1, 0)
            self.epoch = epoch + 1

    def state_dict(self) -> dict[str, int]:
        """The place in the run: an epoch, and how many of its micro-batches were handed out."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on behind the micro-batches that `state` counts; nothing is decoded twice."""
        self._position = (state["epoch"], state["batch"])
        self.epoch = state["epoch"]
        self._resuming = True

    def close(self) -> None:
        """End an unfinished iteration and its threads or processes; the loader can be iterated again."""
        if self._running is not None:
            self._running.close()

    def __enter__(self) -> BaseLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self, batches: Sequence[Index] | Index, epoch: int) -> Generator[Batch, None, None]:
        """The batches; whatever makes them ends when the generator is closed."""
        raise NotImplementedError

    def _batches_of(self, epoch: int) -> Sequence[Index] | Index:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._batches(epoch))
        return self._cached[1]


class Loader(BaseLoader):
    """Reads the store through the C decoder (data.loader=beton).

    A batch's images stay valid until the next batch but one is asked for, or a new iteration begins; then their memory
    is filled again. On a GPU a copy that was begun before that, on the current stream, is waited for.

    Memory: `prefetch` + 2 slots, each as large as the largest batch that it held. Of 256 crops of 224 x 224 pixels that
    is 5 x 38.5 MB; of whole images at most 5 x 134 MB (order.MAX_PADDED_BYTES). Memory for a single image that is
    larger is not kept.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots = [Slot(self._pin_memory) for _ in range(self._prefetch + 2)]

    def _produce(self, batches: Sequence[Index] | Index, epoch: int) -> Generator[Batch, None, None]:
        for slot in self._slots:
            slot.release()  # the last iteration's batches may still be on their way to the device
        device = torch.cuda.current_device() if self._pin_memory else None
        producer = _Producer(batches, *self._steps(epoch), self._slots, device=device)
        end = weakref.finalize(self, producer.end)  # also when the interpreter ends
        try:
            for _ in range(len(batches)):
                yield producer.next()
        finally:
            end()

    def _steps(self, epoch: int) -> tuple[Callable[[Index], Plan], Callable[[Plan, Slot], Batch]]:
        """What the thread does: plan a batch, make a planned one. It knows nothing of this loader or its iterator, so
        that either can be collected, which ends it."""
        split, plan = self._split, self._plan
        options: Any = {"filter": self._filter, "num_threads": self._num_threads, "hash_pixels": self._hash_pixels}
        return (
            lambda index: _planned(split, plan(index, epoch)),
            lambda plan, slot: _decoded(split, plan, slot, **options),
        )


def _planned(split: Split, plan: Plan) -> Plan:
    """The plan of a batch that is to be decoded soon: its bytes may be on their way from the disk meanwhile."""
    beton = split.beton
    read_ahead(beton.data, pointers=beton.pointers[plan.index], payload_bytes=beton.payload_bytes[plan.index])
    return plan


def _decoded(split: Split, plan: Plan, slot: Slot, *, filter: str, num_threads: int, hash_pixels: bool) -> Batch:
    height, width = plan.sizes.max(axis=0)
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
    """The images with all that belongs to them."""
    arrays = {"labels": split.labels[plan.index], **plan._asdict()}
    arrays = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    arrays["hashes"] = sample_hashes(arrays.values(), images.numpy() if hash_pixels else None)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in DEVICE_FIELDS}
    return Batch(images, **(arrays | tensors))


class Slot:
    """Memory for the images of one batch, kept from batch to batch; grows to need, but for an outsized image."""

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
            self._memory = memory = torch.empty(0, dtype=torch.uint8)  # the former is free before more is asked for
            memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pin_memory)
            if num_images > 1 or num_bytes <= MAX_PADDED_BYTES:
                self._memory = memory
        return memory[:num_bytes].view(num_images, height, width, 3)

    def swap(self, other: Slot) -> None:
        """Exchange memories; this one's must not be in use: images that it handed out are on the device by now."""
        if self._copied is not None:
            self._copied.synchronize()
        self._memory, other._memory = other._memory, self._memory

    def release(self) -> None:
        """What the consumer's stream does until now with the images must be done before they are overwritten."""
        if self._pin_memory:
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()


class _Producer:
    """A thread that makes batches ahead, in a ring of slots; it plans them PLANNED_AHEAD batches before.

    device: the consumer's GPU, None where memory is not pinned. A new thread's is GPU 0, on which pinning memory or
    waiting for an event would open a context, about 0.5 GB for each rank of the machine.
    SimpleQueue: its put may be called by a finalizer.
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
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        self._ready: SimpleQueue[tuple[Batch, Slot] | BaseException] = SimpleQueue()
        self._held: deque[Slot] = deque()  # of the batches that the consumer may still look at
        self._ended = False
        for slot in slots:
            self._free.put(slot)
        self._thread = threading.Thread(target=self._run, name="tencrop-loader", daemon=True)
        self._thread.start()

    def next(self) -> Batch:
        """The next batch; raises what the thread raised."""
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
        """End the thread, at the latest when its present batch is made. May be called twice."""
        self._ended = True
        self._free.put(None)
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
        except BaseException as error:
            self._ready.put(error)

    def _plans(self) -> Iterator[Plan]:
        waiting: deque[Plan] = deque()
        for index in self._batches:
            waiting.append(self._plan(index))
            if len(waiting) > PLANNED_AHEAD:
                yield waiting.popleft()
        yield from waiting

"""Copies the next batch to the GPU while the device computes on the present one; the data module uses it on CUDA only.

On the stream that computes, a copy would start when all kernels before it have run, and the next step would wait for
it: 5 MB of uint8 pixels for 32 images of 224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

import torch
from torch import Tensor

from tencrop.data.augmentation.batch import Batch


def copied_ahead(
    batches: Generator[Batch, None, None],
    device: torch.device,
    move: Callable[[Batch], Batch],
    *,
    copying: torch.cuda.Stream,
) -> Generator[Batch, None, None]:
    """Yield the batches on `device`, each copied by `move` (asynchronously) while the one before it is in use.

    copying: the same stream in every epoch. Torch's allocator does not reuse the memory of one stream on another.
    """
    computing = torch.cuda.current_stream(device)

    def queue_next() -> tuple[Batch, torch.cuda.Event] | None:
        # The loader marks on the current stream when a batch's memory may be overwritten: it has to be the one that
        # copies.
        with torch.cuda.stream(copying):
            batch = next(batches, None)
            return None if batch is None else (move(batch), copying.record_event())

    with closing(batches):
        queued = queue_next()
        while queued is not None:
            (batch, is_copied), queued = queued, queue_next()
            computing.wait_event(is_copied)  # the device waits; the host does not
            for tensor in tensors_of(batch):
                # Allocated on the other stream: without this, its memory could be used again for a later batch while
                # kernels that read it have not run.
                tensor.record_stream(computing)
            yield batch


def tensors_of(batch: Batch) -> list[Tensor]:
    """The fields and parameters of a batch that the device computes with."""
    return [value for value in (batch.images, batch.labels, *batch.params.values()) if isinstance(value, Tensor)]

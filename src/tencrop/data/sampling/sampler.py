"""The sampler: the order of an epoch, the micro-batches of each rank, the parts of an evaluation, the minival.

An epoch's order is a function of (seed, epoch) and the set of samples. Ranks and micro-batches only partition it, so
every layout of devices trains on the same global batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tencrop.config import UserError
from tencrop.data.sampling.geometry import MAX_PIXELS
from tencrop.data.sampling.rng import Index, Stream, hashes

MAX_PADDED_BYTES = 1 << 27  # of a batch: 128 images of 480 x 728 pixels. The loader holds several such batches


def training_positions(num_batches: int, *, global_batch: int, micro_batch: int, rank: int, num_ranks: int) -> Index:
    """Positions in the epoch that this rank takes, int64 [num_micro_batches, micro_batch].

    Global batch b is the positions [b * B, (b + 1) * B). Rank r takes the r-th of its `num_ranks` equal contiguous
    parts, cut into micro-batches.
    """
    # PyTorch's DistributedSampler interleaves ranks and pads the epoch with repeated samples. Here an epoch has whole
    # global batches only, so nothing is padded; samples beyond the last one are left out, others in each epoch.
    per_rank, remainder = divmod(global_batch, num_ranks)
    assert remainder == 0 and per_rank % micro_batch == 0 and 0 <= rank < num_ranks
    starts = np.arange(num_batches, dtype=np.int64) * global_batch + rank * per_rank
    return (starts[:, None] + np.arange(per_rank)).reshape(-1, micro_batch)


def epoch_order(index: Index, *, seed: int, epoch: int, places: Index | slice = slice(None)) -> Index:
    """The samples `index` in the order of the epoch: sorted by a 64-bit hash of (seed, epoch, index), ties by index.

    places: the part of the order that is returned.
    """
    # Sorting by a hash instead of a shuffle: the relative order of two samples does not depend on which others there
    # are, so removing one (a minival, a damaged file) leaves the rest in place.
    index = np.asarray(index, np.int64)
    if np.any(index[1:] < index[:-1]):
        index = np.sort(index)
    order = np.argsort(hashes(seed=seed, index=index, epoch=epoch, stream=Stream.ORDER), kind="stable")
    return index[order[places]]


class OrderAhead:
    """The order of each epoch by `compute`. A thread calls it ahead of time, so that no epoch begins with a wait."""

    def __init__(self, compute: Callable[[int], Index]) -> None:
        self._order = lru_cache(maxsize=2)(compute)
        self._thread: threading.Thread | None = None
        self._prepared = -1  # the last epoch that a thread was started for

    def __call__(self, epoch: int) -> Index:
        return self._order(epoch)

    def prepare(self, epoch: int) -> None:
        """Compute the order of `epoch` in a thread, once however often this is called."""
        if self._prepared != epoch:
            self._prepared = epoch
            self._thread = threading.Thread(target=self._order, args=(epoch,), name="tencrop-order")
            self._thread.start()

    def close(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()


def evaluation_batches(index: Index, *, micro_batch: int, rank: int, num_ranks: int) -> list[Index]:
    """This rank's part of an evaluation in batches of `micro_batch`, the last one smaller. Every sample occurs once:
    no padding, which would count some images twice in the error."""
    part = evaluation_part(index, rank=rank, num_ranks=num_ranks)
    return [part[start : start + micro_batch] for start in range(0, len(part), micro_batch)]


def split_to_fit_memory(batches: list[Index], sizes: npt.NDArray[np.int32]) -> list[Index]:
    """Split batches that would need too much memory; the samples and their order stay the same.

    Every image of a batch is padded to the largest height and the largest width in it, so one tall and one wide image
    make all of them large. `sizes` int [N, 2]: height and width of every sample of the split as it is evaluated.
    Afterwards a batch takes at most MAX_PADDED_BYTES, unless it is a single larger image.
    """
    return [part for batch in batches for part in _cut(batch, sizes[batch].tolist())]


def check_rescaled(sizes: npt.NDArray[np.int32], name_of: Callable[[int], str], *, key: str) -> str | None:
    """A warning with the memory of the largest image if that exceeds MAX_PADDED_BYTES; else None.

    sizes: as in `split_to_fit_memory`. key: the option that rescales the images, as KEY=VALUE. Raises UserError if an
    image would have more than MAX_PIXELS: a strip of 1 x 65,500 pixels has 4.3 billion at a shorter side of 256.
    """
    num_pixels = sizes.astype(np.int64).prod(axis=1)
    largest = int(num_pixels.argmax())
    height, width = sizes[largest].tolist()
    what = f"{key}: {name_of(largest)} has {width} x {height} pixels at that side"
    if num_pixels[largest] > MAX_PIXELS:
        raise UserError(f"{what}, more than the {MAX_PIXELS:,} that an image may have; leave it out, or crop the file")
    num_bytes = 3 * int(num_pixels[largest])
    if num_bytes <= MAX_PADDED_BYTES:
        return None
    return f"{what}: a batch of it alone takes {num_bytes / 1e6:,.0f} MB, 4 times that as the network's input"


def _cut(batch: Index, sizes: list[list[int]]) -> list[Index]:
    # Greedy: start a new batch where the next image would make the padded batch too large.
    starts, height, width = [0], 0, 0
    for position, size in enumerate(sizes):
        height, width = max(height, size[0]), max(width, size[1])
        if position > starts[-1] and 3 * height * width * (position + 1 - starts[-1]) > MAX_PADDED_BYTES:
            starts.append(position)
            height, width = size
    return np.split(batch, starts[1:]) if len(batch) else []


def evaluation_part(index: Index, *, rank: int, num_ranks: int) -> Index:
    """The contiguous part of `index` that a rank evaluates; part sizes differ by at most one and may be 0."""
    assert 0 <= rank < num_ranks
    return index[len(index) * rank // num_ranks : len(index) * (rank + 1) // num_ranks]


def minival_split(num_samples: int, *, fraction: float) -> tuple[Index, Index]:
    """(training index, minival index), each ascending. The minival is the round(num_samples * fraction) samples with
    the smallest hashes.

    A fraction above 0 takes at least one image; raises UserError if none is left to train on.
    """
    # Seed 0 whatever the run's seed: all seeds of a recipe must select on the same images, or their spread would
    # include that of the selection.
    assert 0 <= fraction <= 1
    index = np.arange(num_samples, dtype=np.int64)
    num_minival = max(1, round(num_samples * fraction)) if fraction > 0 else 0
    if num_minival >= num_samples:
        raise UserError(
            f"training.minival_fraction={fraction}: takes {num_minival} of {num_samples} images and leaves none"
            " to train on; lower it"
        )
    if num_minival == 0:
        return index, index[:0]
    by_hash = np.argsort(hashes(seed=0, index=index, epoch=0, stream=Stream.MINIVAL), kind="stable")
    return np.sort(by_hash[num_minival:]), np.sort(by_hash[:num_minival])

"""The reference loader (data.loader=torch): torch's DataLoader over the original files, decoded by Pillow.

It is slow and obvious. The tests compare the other loaders with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tencrop.config import UserError
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.plan import Plan
from tencrop.data.loading.loader import BaseLoader, batch_of
from tencrop.data.sampling.rng import Index
from tencrop.data.store.encode import STORE_FILTER, Undecodable, decode_rgb
from tencrop.data.store.manifest import Split


class TorchLoader(BaseLoader):
    """Decodes the original files in `num_threads` worker processes (0: in this one), each of which makes whole batches.

    The pixels equal Loader's if the store keeps the original bytes, or RGB at the original size; if images were resized
    and re-encoded, pixels differ by that encoding. Raises UserError if an original file is gone.
    """

    def _produce(self, batches: Sequence[Index] | Index, epoch: int) -> Generator[Batch, None, None]:
        dataset = _Batches(
            self._split, batches, lambda index: self._plan(index, epoch), self._filter, self._hash_pixels
        )
        loader = DataLoader(
            dataset,
            batch_size=None,  # an item is a whole batch already
            collate_fn=_unchanged,  # torch's default would convert our arrays to tensors
            num_workers=self._num_threads,
            prefetch_factor=max(1, self._prefetch // self._num_threads) if self._num_threads else None,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else torch draws a base seed from the global generator, which training uses
        )
        # torch ends the workers when this iterator is collected, which is when this generator is closed.
        for item in loader:
            if isinstance(item, Exception):
                raise item
            yield item


def _unchanged(item: Any) -> Any:
    return item


class _Batches(Dataset):
    def __init__(
        self,
        split: Split,
        batches: Sequence[Index] | Index,
        plan: Callable[[Index], Plan],
        filter: str,
        hash_pixels: bool,
    ) -> None:
        self._split, self._batches, self._plan = split, batches, plan
        self._filter, self._hash_pixels = filter, hash_pixels

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch | Exception:
        """A batch, or the exception. Raised in a worker, it would arrive with a page of traceback in its message."""
        try:
            # A truncated file raises SIGBUS when it is read. In a worker torch's own handler reports that with a
            # traceback, so check first.
            self._split.check_sizes()
            plan = self._plan(self._batches[number])
            images = np.zeros((len(plan.index), *plan.sizes.max(axis=0), 3), np.uint8)
            for image, index, box, size, flip in zip(
                images, plan.index, plan.boxes, plan.sizes, plan.flips, strict=True
            ):
                stored_size = self._split.stored_sizes[index]
                content = self._split.read_original(int(index))
                try:
                    image[: size[0], : size[1]] = cut(content, stored_size, box, size, flip, self._filter)
                except Undecodable as error:
                    name = self._split.names(int(index))
                    raise UserError(
                        f"{name}: cannot be decoded any more ({error}); put back what was prepared"
                    ) from error
            return batch_of(torch.from_numpy(images), self._split, plan, hash_pixels=self._hash_pixels)
        except Exception as error:
            return error


def cut(
    content: bytes, stored_size: np.ndarray, box: np.ndarray, size: np.ndarray, flip: bool, filter: str
) -> np.ndarray:
    """One sample of a plan from its original file, one Pillow call for each step: uint8 [height, width, 3]."""
    # The obvious way, and slow: a full decode for every crop. The tests compare the C decoder with it.
    image = decode_rgb(content)
    stored_height, stored_width = (int(length) for length in stored_size)
    if image.size != (stored_width, stored_height):
        image = image.resize((stored_width, stored_height), STORE_FILTER)
    top, left, height, width = (int(value) for value in box)
    image = image.crop((left, top, left + width, top + height))
    image = resize(image, int(size[0]), int(size[1]), filter)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def resize(image: Image.Image, height: int, width: int, filter: str) -> Image.Image:
    """Pillow's resize, first horizontally, then vertically."""
    # Two calls: in one, Pillow 13 may swap the passes if the height shrinks much more than the width
    # (python-pillow/Pillow#9549), which rounds differently.
    resample = Image.Resampling[filter.upper()]
    return image.resize((width, image.height), resample).resize((width, height), resample)

"""The loaders that loading.py races: ours, its peers, and the floor. Each runs in a process of its own.

All deliver the same: uint8 batches [256, 224, 224, 3] in random order, random-resized crops (area 8-100%, aspect
3/4-4/3) mirrored with probability 1/2, on `--workers` cores. The settings of a peer are those that its documentation
gives for this task; what was left to choose is said beside it. `cut` is one image by the same code at a given box,
for the comparison of pixels.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from tencrop.config import Augmentation, Pca
from tencrop.config.schema import Filter
from tencrop.data.sampling.rng import Index
from tencrop.data.sampling.sampler import epoch_order
from tencrop.data.store.beton import JPEG
from tencrop.data.store.manifest import Split, open_split

BATCH, SIZE = 256, 224
FILTER: Filter = "bilinear"
AREA, ASPECT = [0.08, 1.0], [3 / 4, 4 / 3]
AUGMENTATION = Augmentation("random_resized", SIZE, FILTER, 0.5, Pca(0.0, "dataset"), area=AREA, aspect=ASPECT)
FAST_DCT = 2048  # TJFLAG_FASTDCT: what stock ffcv decodes with


class Peer:
    """`epoch(number)` yields the number of images of each batch: some epochs of the split, cut to whole batches."""

    reads_originals = False

    def __init__(self, options: argparse.Namespace) -> None:
        self.workers, self.split = options.workers, open_split(options.root, "train")
        self.repeats = -(-options.images // self.split.num_samples)

    def epoch(self, number: int) -> Iterator[int]:
        raise NotImplementedError

    def drain(self) -> None:
        """Discard the batches that were prepared since the last epoch: they cost the next one no time."""

    def order(self, number: int) -> Index:
        """Several epochs of the split as one, so that what an epoch costs at its start does not count too much."""
        index = np.arange(self.split.num_samples)
        parts = [epoch_order(index, seed=0, epoch=number * self.repeats + part) for part in range(self.repeats)]
        return np.concatenate(parts)


class Ours(Peer):
    """The loader of train.py with its plan, exactness and all; prefetch as there."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        from tencrop.data.augmentation.plan import training_plan
        from tencrop.data.loading.loader import Loader

        sizes = self.split.stored_sizes
        self.loader = Loader(
            self.split,
            lambda number: whole_batches(self.order(number)),
            lambda index, epoch: training_plan(index, sizes, augmentation=AUGMENTATION, seed=0, epoch=epoch),
            filter=FILTER,
            num_threads=self.workers,
        )

    def epoch(self, number: int) -> Iterator[int]:
        for batch in self.loader.batches(number):
            yield len(batch.images)

    def cut(self, index: int, box: np.ndarray) -> np.ndarray:
        from tencrop.data.native.decoder import decode_batch

        beton, image = self.split.beton, np.empty((1, SIZE, SIZE, 3), np.uint8)
        decode_batch(
            image, beton.data, pointers=beton.pointers[[index]], payload_bytes=beton.payload_bytes[[index]],
            modes=beton.modes[[index]], stored_sizes=self.split.stored_sizes[[index]], boxes=box[None],
            sizes=np.array([[SIZE, SIZE]], np.int32), flips=np.zeros(1, bool), filter=FILTER, num_threads=1,
        )  # fmt: skip
        return image[0]


class StockFfcv(Peer):
    """ffcv's own pipeline for ImageNet (docs.ffcv.io, "Tuning guide" and ffcv-imagenet), on the same file.

    os_cache=True is its advice for a data set that fits into memory; OrderOption.RANDOM goes with it. Its
    RandomResizedCropRGBImageDecoder decodes whole images by turbojpeg with FASTDCT and resizes by OpenCV's INTER_AREA
    (neither can be chosen); ToTensor keeps [B, H, W, 3], so no change of layout is charged to it. batches_ahead is
    its default, 3.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor

        decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=tuple(AREA), ratio=tuple(ASPECT))
        self.loader = Loader(
            str(self.split.beton.path),
            batch_size=BATCH,
            num_workers=self.workers,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=np.tile(np.arange(self.split.num_samples), self.repeats),
            drop_last=True,
            pipelines={"image": [decoder, RandomHorizontalFlip(), ToTensor()],
                       "label": [IntDecoder(), ToTensor(), Squeeze()]},
        )  # fmt: skip

    def epoch(self, number: int) -> Iterator[int]:
        for images, _ in self.loader:
            yield len(images)

    def cut(self, index: int, box: np.ndarray) -> np.ndarray:
        """What its compiled pipeline calls, at a box of ours: its own draws cannot be seeded."""
        from ffcv.libffcv import imdecode, resize_crop

        height, width = (int(length) for length in self.split.stored_sizes[index])
        payload = np.ascontiguousarray(self.split.beton.payload(index))
        if self.split.beton.modes[index] == JPEG:
            whole = np.empty((height, width, 3), np.uint8)
            imdecode(payload, whole, height, width, height, width, 0, 0, 1, 1, False, False)
        else:
            whole = payload.reshape(height, width, 3)
        image = np.empty((SIZE, SIZE, 3), np.uint8)
        top, left, box_height, box_width = (int(value) for value in box)
        resize_crop(whole, top, top + box_height, left, left + box_width, image)
        return image


class TorchvisionPillow(Peer):
    """torchvision's DataLoader as in pytorch/examples/imagenet, on the original files.

    Persistent workers, one a core, so that starting them is not counted; torch's default of one thread a worker; the
    images leave as uint8 [H, W, 3] without ToTensor's division, which is spared it.
    """

    reads_originals = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.repeats = max(1, self.repeats // 4)  # it is slow, and every round has to wait for it
        from torch.utils.data import DataLoader
        from torchvision import transforms

        self.positions: list[int] = []
        crop = transforms.RandomResizedCrop(SIZE, tuple(AREA), tuple(ASPECT))
        self.loader: Any = DataLoader(
            Files(self.split, transforms.Compose([crop, transforms.RandomHorizontalFlip()]), self.read),  # type: ignore[arg-type]
            batch_size=BATCH,
            sampler=self.positions,
            num_workers=self.workers,
            persistent_workers=True,
            drop_last=True,
        )

    def epoch(self, number: int) -> Iterator[int]:
        self.positions[:] = self.order(number).tolist()
        for images, _ in self.loader:
            yield len(images)

    @staticmethod
    def read(content: bytes) -> Any:
        from PIL import Image

        return Image.open(io.BytesIO(content)).convert("RGB")

    def cut(self, index: int, box: np.ndarray) -> np.ndarray:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        image = self.read(self.split.read_original(index))
        crop = F.resized_crop(image, *box.tolist(), [SIZE, SIZE], InterpolationMode(FILTER), antialias=True)
        return np.asarray(channels_last(crop))


class TorchvisionDecode(TorchvisionPillow):
    """The same with torchvision.io.decode_jpeg (its libjpeg-turbo) and antialiased resizing of uint8 tensors."""

    @staticmethod
    def read(content: bytes) -> Any:
        import torch
        from torchvision.io import ImageReadMode, decode_image

        return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


class Files:
    """The data set of both: one original file, its crop as uint8 [H, W, 3], its label."""

    def __init__(self, split: Split, transform: Any, read: Any) -> None:
        self.split, self.transform, self.read = split, transform, read

    def __len__(self) -> int:
        return self.split.num_samples

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.transform(self.read(self.split.read_original(index)))
        return channels_last(image), int(self.split.labels[index])


def channels_last(image: Any) -> Any:
    import torch

    return image.permute(1, 2, 0).contiguous() if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image))


class Floor(Peer):
    """Every JPEG of the store to RGB, whole, by turbojpeg with FASTDCT into a buffer of its thread: no crop, no resize.

    What a loader of whole images cannot pass. A raw image costs it a copy.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.library = ctypes.CDLL(ctypes.util.find_library("turbojpeg"))
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.library.tjInitDecompress.restype = pointer
        self.library.tjDecompress2.argtypes = [pointer, pointer, ctypes.c_ulong, pointer, *[number] * 5]
        self.library.tjDestroy.argtypes = [pointer]

    def epoch(self, number: int) -> Iterator[int]:
        batches, lock, done = iter(whole_batches(self.order(number))), threading.Lock(), []

        def work() -> None:
            handle = self.library.tjInitDecompress()
            buffer = np.empty(int(self.split.stored_sizes.prod(axis=1, dtype=np.int64).max()) * 3, np.uint8)
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    break
                for index in batch:
                    self.decode(handle, buffer, index)
                done.append(len(batch))
            self.library.tjDestroy(handle)

        threads = [threading.Thread(target=work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield from done

    def decode(self, handle: int, buffer: np.ndarray, index: int) -> None:
        height, width = (int(length) for length in self.split.stored_sizes[index])
        payload = self.split.beton.payload(index)
        if self.split.beton.modes[index] != JPEG:
            buffer[: payload.size] = payload
            return
        source, target = payload.ctypes.data, buffer.ctypes.data
        code = self.library.tjDecompress2(handle, source, payload.size, target, width, 0, height, 0, FAST_DCT)
        assert code == 0, self.split.names(index)


PEERS: dict[str, type[Peer]] = {
    "tencrop": Ours,
    "ffcv": StockFfcv,
    "full decode": Floor,
    "torchvision, Pillow": TorchvisionPillow,
    "torchvision, decode_jpeg": TorchvisionDecode,
}


def whole_batches(order: Index) -> Index:
    return order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)

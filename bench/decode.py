"""How fast random-resized crops come out of a prepared store, against plainly decoding every image whole.

    python bench/decode.py ROOT [--threads 2] [--size 224] [--filter bilinear] [--rounds 5]

ROOT is a folder that prepare.py made. The peer is libjpeg-turbo's own full decode to RGB (turbojpeg, accurate DCT)
on as many threads in the same run: it neither crops nor resizes, so it is what a loader of whole images cannot pass.
Rounds alternate; the median is printed, as images per second of the clock and of processor time (which other jobs on
the machine disturb less).
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import threading
import time
from collections.abc import Callable

import numpy as np

from tencrop.config import Augmentation, Pca
from tencrop.data.beton import JPEG
from tencrop.data.decoder import FILTERS, decode_batch
from tencrop.data.manifest import Split, open_split
from tencrop.data.plan import training_plan

BATCH = 256
ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--filter", choices=FILTERS, default="bilinear")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    split = open_split(options.root, "train")
    index = np.flatnonzero(split.beton.modes == JPEG)
    images = np.empty((BATCH, options.size, options.size, 3), np.uint8)
    runs: dict[str, Callable[[int], None]] = {
        "whole images, libjpeg-turbo": lambda epoch: decode_whole(split, index, options.threads),
        f"crops of {options.size}, {options.filter}": lambda epoch: decode_crops(split, index, epoch, images, options),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for epoch in range(options.rounds):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run(epoch)
            rates[name].append(
                (len(index) / (time.perf_counter() - wall), len(index) / (time.process_time() - processor))
            )
    medians = {name: np.median(values, axis=0) for name, values in rates.items()}
    floor = next(iter(medians.values()))
    print(f"{len(index)} JPEGs of {options.root}, {options.threads} threads, median of {options.rounds} rounds")
    print(f"{'':30s} {'img/s':>8s} {'ratio':>6s} {'img/processor s':>16s} {'ratio':>6s}")
    for name, (wall, processor) in medians.items():
        print(f"{name:30s} {wall:8.0f} {wall / floor[0]:6.2f} {processor:16.0f} {processor / floor[1]:6.2f}")


def decode_crops(split: Split, index: np.ndarray, epoch: int, images: np.ndarray, options: argparse.Namespace) -> None:
    """One epoch of crops and flips, as the loader's thread makes them, plan included."""
    augmentation = Augmentation(
        crop="random_resized", size=options.size, filter=options.filter, flip=0.5, pca=Pca(0.0, "dataset"),
        area=[0.08, 1.0], aspect=[3 / 4, 4 / 3],
    )  # fmt: skip
    for start in range(0, len(index), BATCH):
        part = index[start : start + BATCH]
        plan = training_plan(part, split.stored_sizes, augmentation=augmentation, seed=0, epoch=epoch)
        beton = split.beton
        decode_batch(
            images[: len(part)], beton.data, pointers=beton.pointers[part], payload_bytes=beton.payload_bytes[part],
            modes=beton.modes[part], stored_sizes=split.stored_sizes[part], boxes=plan.boxes, sizes=plan.sizes,
            flips=plan.flips, filter=options.filter, num_threads=options.threads,
        )  # fmt: skip


def decode_whole(split: Split, index: np.ndarray, num_threads: int) -> None:
    """Every image to RGB, each thread into one buffer of its own."""
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        raise SystemExit("turbojpeg is not installed (Debian: libturbojpeg0)")
    library = ctypes.CDLL(name)
    library.tjInitDecompress.restype = ctypes.c_void_p
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.tjDecompress2.argtypes = [pointer, pointer, ctypes.c_ulong, pointer, *[number] * 5]
    library.tjDestroy.argtypes = [pointer]
    beton, sizes, places, lock = split.beton, split.stored_sizes, iter(index.tolist()), threading.Lock()

    def work() -> None:
        handle, buffer = library.tjInitDecompress(), np.empty(int(sizes.prod(axis=1).max()) * 3, np.uint8)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                break
            height, width = (int(length) for length in sizes[place])
            source, num_bytes = beton.data.ctypes.data + int(beton.pointers[place]), int(beton.payload_bytes[place])
            code = library.tjDecompress2(
                handle, source, num_bytes, buffer.ctypes.data, width, 0, height, 0, ACCURATE_DCT
            )
            assert code == 0, split.names(place)
        library.tjDestroy(handle)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

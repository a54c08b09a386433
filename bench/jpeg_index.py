"""What data.store.mode=jpeg_indexed saves our decoder, and costs in bytes and at preparation.

    python bench/jpeg_index.py ROOT [--intervals 1 4 8 64] [--images 500] [--rounds 7]

ROOT is a folder prepared by prepare.py with data.store.mode=jpeg. Its JPEGs are rewritten as by prepare.py, with a
restart marker after at most so many blocks (MCUs); 64 are at least a row of most photographs. Our decoder cuts the same
random-resized crops, 224 px, from these and from the originals, on one thread. Rounds alternate. All pixels must be
equal; exit code 1 if they are not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
from peers import AUGMENTATION, FILTER, SIZE

from tencrop.data.augmentation.plan import training_plan
from tencrop.data.native.decoder import decode_batch
from tencrop.data.native.index import INTERVAL, indexed_jpeg
from tencrop.data.store.beton import JPEG
from tencrop.data.store.manifest import open_split

ORIGINALS = "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--intervals", nargs="+", type=int, default=[1, INTERVAL, 8, 64], help="blocks, at most")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    split = open_split(options.root, "train")
    samples = np.flatnonzero(split.beton.modes == JPEG)[: options.images]
    sizes = split.stored_sizes[samples]
    boxes = training_plan(samples, split.stored_sizes, augmentation=AUGMENTATION, seed=0, epoch=0).boxes
    files = {ORIGINALS: [split.beton.payload(sample).tobytes() for sample in samples]}
    rewriting_s = {ORIGINALS: np.nan}
    for interval in options.intervals:
        start = time.process_time()
        files[str(interval)] = [indexed_jpeg(content, interval=interval) for content in files[ORIGINALS]]
        rewriting_s[str(interval)] = time.process_time() - start
    times: dict[str, list[float]] = {name: [] for name in files}
    pixels = {}
    for _ in range(options.rounds):
        for name, contents in files.items():
            pixels[name], seconds = decode(contents, sizes, boxes)
            times[name].append(seconds)
    print(f"{len(samples)} images, {options.rounds} rounds, one thread; images per CPU second")
    print(f"{'markers':>8s}{'img/s':>8s}{'/ originals: least':>20s}{'median':>8s}{'most':>6s}", end="")
    print(f"{'size':>7s}{'rewritten/s':>13s}")
    for name, durations in times.items():
        least, median, most = np.quantile(np.array(times[ORIGINALS]) / durations, [0, 0.5, 1])
        size = sum(map(len, files[name])) / sum(map(len, files[ORIGINALS]))
        print(
            f"{name:>8s}{len(samples) / np.median(durations):8.0f}{least:20.2f}{median:8.2f}{most:6.2f}{size:7.3f}",
            end="",
        )
        print(f"{len(samples) / rewriting_s[name]:13.0f}")
    num_different = sum(int((images != pixels[ORIGINALS]).any(axis=(1, 2, 3)).sum()) for images in pixels.values())
    print("all pixels are equal" if num_different == 0 else f"{num_different} crops differ")
    return min(num_different, 1)


def decode(contents: Sequence[bytes], image_sizes: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, float]:
    """(crops, uint8 [N, 224, 224, 3]; CPU seconds)"""
    num_images = len(contents)
    images = np.zeros((num_images, SIZE, SIZE, 3), np.uint8)
    num_bytes = np.array([len(content) for content in contents], np.uint64)
    data = np.frombuffer(b"".join(contents), np.uint8)
    start = time.process_time()
    decode_batch(
        images, data, pointers=np.cumsum(num_bytes) - num_bytes, payload_bytes=num_bytes,
        modes=np.full(num_images, JPEG, np.uint8), stored_sizes=image_sizes, boxes=boxes,
        sizes=np.full((num_images, 2), SIZE, np.int32), flips=np.zeros(num_images, bool), filter=FILTER, num_threads=1,
    )  # fmt: skip
    return images, time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())

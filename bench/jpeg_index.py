"""What restart markers in the stored JPEGs would save our decoder: losslessly rewritten files, their size and speed.

    python bench/jpeg_index.py ROOT [--intervals 1 4 6 8] [--images 500] [--rounds 7]

ROOT is a folder prepared by prepare.py with data.store.mode=jpeg. It needs jpegtran (Debian: libjpeg-turbo-progs).

A JPEG has no index: to reach a crop box, a decoder reads the entropy code of every block above it, and of those beside
it. With a restart marker after every few blocks (MCUs) of a row, and a table of their positions, it could gather the
intervals that the box needs, behind a header with the size of that part: a small JPEG with the same coefficients. This
program rewrites each file by jpegtran, gathers these intervals, and times our decoder on the small JPEGs and on the
originals, at the same random-resized crops, on one thread. Rounds alternate. The pixels of both must be equal; exit
code 1 if they are not. The gathering itself, a copy of the bytes that are decoded anyway, is not timed.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from peers import AUGMENTATION, FILTER, SIZE

from tencrop.data.augmentation.plan import training_plan
from tencrop.data.native.decoder import decode_batch
from tencrop.data.store.beton import JPEG
from tencrop.data.store.manifest import open_split

MCU_SIZES = ((8, 8), (16, 8), (16, 16), (8, 8), (8, 16), (32, 8))  # (width, height) by turbojpeg's TJSAMP
MARGIN = 2  # pixels beside the box that smooth chroma upsampling reads
SOI, SOF, SOS, EOI = 2, (0xC0, 0xC1), 0xDA, b"\xff\xd9"


@dataclass(frozen=True)
class Part:
    """A JPEG, its (height, width), and the crop box in it."""

    content: bytes
    size: tuple[int, int]
    box: tuple[int, int, int, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--intervals", nargs="+", type=int, default=[1, 4, 6, 8], help="MCUs between markers, at most")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    split = open_split(options.root, "train")
    samples = np.flatnonzero(split.beton.modes == JPEG)[: options.images]
    boxes = training_plan(samples, split.stored_sizes, augmentation=AUGMENTATION, seed=0, epoch=0).boxes
    contents = [split.beton.payload(sample).tobytes() for sample in samples]
    parts = {"originals": [Part(c, header(c)[0], tuple(b)) for c, b in zip(contents, boxes.tolist(), strict=True)]}
    sizes = {"originals": 1.0}
    for interval in options.intervals:
        rewritten = [rewrite(content, interval) for content in contents]
        parts[f"every {interval}"] = [gather(*r, p.box) for r, p in zip(rewritten, parts["originals"], strict=True)]
        sizes[f"every {interval}"] = sum(len(r[0]) for r in rewritten) / sum(map(len, contents))
    times, pixels = race(parts, options.rounds)
    print(f"{len(samples)} images, {options.rounds} rounds, one thread; CPU time")
    print(f"{'markers':12s}{'img/s':>8s}{'/ originals: least':>20s}{'median':>8s}{'most':>6s}{'size':>7s}")
    for name, seconds in times.items():
        least, median, most = np.quantile(times["originals"] / seconds, [0, 0.5, 1])
        rate = len(samples) / np.median(seconds)
        print(f"{name:12s}{rate:8.0f}{least:20.2f}{median:8.2f}{most:6.2f}{sizes[name]:7.3f}")
    num_different = sum(int((images != pixels["originals"]).any(axis=(1, 2, 3)).sum()) for images in pixels.values())
    print("all pixels are equal" if num_different == 0 else f"{num_different} crops differ")
    return min(num_different, 1)


def header(content: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width) of the image, (width, height) of an MCU), both in pixels."""
    library = ctypes.CDLL(ctypes.util.find_library("turbojpeg"))
    library.tjInitDecompress.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitDecompress())
    width, height, subsampling, color_space = (ctypes.c_int() for _ in range(4))
    facts = [ctypes.byref(value) for value in (width, height, subsampling, color_space)]
    code = library.tjDecompressHeader3(handle, content, ctypes.c_ulong(len(content)), *facts)
    library.tjDestroy(handle)
    assert code == 0, "not a JPEG"
    return (height.value, width.value), MCU_SIZES[subsampling.value]


def rewrite(content: bytes, most: int) -> tuple[bytes, int]:
    """(baseline JPEG of the same coefficients with restart markers, number of MCUs between them).

    The number divides the MCUs of a row, so that every row begins an interval; it is at most `most`.
    """
    (_, width), (mcu_width, _) = header(content)
    per_row = -(-width // mcu_width)
    interval = max(number for number in range(1, most + 1) if per_row % number == 0)
    command = ["jpegtran", "-copy", "all", "-optimize", "-restart", f"{interval}B"]
    return subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True).stdout, interval


def gather(content: bytes, interval: int, box: tuple[int, int, int, int]) -> Part:
    """The JPEG of the intervals that `box` needs, with the box in it."""
    (height, width), (mcu_width, mcu_height) = header(content)
    top, left, box_height, box_width = box
    rows = blocks(top, box_height, mcu_height, -(-height // mcu_height))
    columns = blocks(left, box_width, mcu_width * interval, -(-width // (mcu_width * interval)))
    x, y = columns.start * mcu_width * interval, rows.start * mcu_height
    size = min(height, rows.stop * mcu_height) - y, min(width, columns.stop * mcu_width * interval) - x
    frame, scan = frame_and_scan(content)
    starts = [scan, *(scan + marker.end() for marker in re.finditer(rb"\xff[\xd0-\xd7]", content[scan:]))]
    ends = [start - 2 for start in starts[1:]] + [len(content) - 2]
    per_row, num_gathered = -(-width // (mcu_width * interval)), 0
    head = bytearray(content[:scan])
    head[frame + 5 : frame + 9] = size[0].to_bytes(2, "big") + size[1].to_bytes(2, "big")
    pieces = [bytes(head)]
    for row in rows:
        for column in columns:
            number = row * per_row + column
            # Markers count modulo 8 from 0.
            pieces += [content[starts[number] : ends[number]], bytes([0xFF, 0xD0 + num_gathered % 8])]
            num_gathered += 1
    pieces[-1] = EOI
    return Part(b"".join(pieces), size, (top - y, left - x, box_height, box_width))


def blocks(first: int, length: int, size: int, num_blocks: int) -> range:
    """The blocks of `size` pixels that hold the pixels of the box along one axis, and its margin."""
    return range(max(0, (first - MARGIN) // size), min(num_blocks, -(-(first + length + MARGIN) // size)))


def frame_and_scan(content: bytes) -> tuple[int, int]:
    """Where the frame header begins, and where the entropy code of the only scan does."""
    position, frame = SOI, 0
    while True:
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        frame = position if marker in SOF else frame
        position += 2 + length
        if marker == SOS:
            return frame, position


def race(parts: dict[str, list[Part]], num_rounds: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """CPU seconds of each round, and the decoded crops, by kind."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    pixels = {}
    for _ in range(num_rounds):
        for name, kind in parts.items():
            pixels[name], seconds = decode(kind)
            times[name].append(seconds)
    return {name: np.array(seconds) for name, seconds in times.items()}, pixels


def decode(parts: Sequence[Part]) -> tuple[np.ndarray, float]:
    images = np.zeros((len(parts), SIZE, SIZE, 3), np.uint8)
    num_bytes = np.array([len(part.content) for part in parts], np.uint64)
    data = np.frombuffer(b"".join(part.content for part in parts), np.uint8)
    start = time.process_time()
    decode_batch(
        images, data, pointers=np.cumsum(num_bytes) - num_bytes, payload_bytes=num_bytes,
        modes=np.full(len(parts), JPEG, np.uint8), stored_sizes=np.array([part.size for part in parts], np.int32),
        boxes=np.array([part.box for part in parts], np.int32), sizes=np.full((len(parts), 2), SIZE, np.int32),
        flips=np.zeros(len(parts), bool), filter=FILTER, num_threads=1,
    )  # fmt: skip
    return images, time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())

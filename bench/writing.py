"""Benchmark of preparation: speed of writing a store of the original JPEGs, against stock ffcv's writer, on one core.

    python bench/writing.py FOLDER [--rounds 5] [--core 0]

FOLDER has class folders of JPEGs. The writers alternate on the same files, all pinned to one core:

  stock ffcv        DatasetWriter with RGBImageField(write_mode="jpg", jpeg_quality=90), no resize, one worker, as in
                    ffcv-imagenet's write_imagenet.py. Pillow opens the images and converts them to RGB, as in
                    torchvision's ImageFolder. ffcv decodes every image and encodes it again.
  ours, copied      reads every file, parses its header, hashes it (SHA-256), writes its bytes and flushes the store
  ours, verified    what prepare.py does for ImageNet: as before, and decodes every image to its end at a reduced size,
                    gathers color statistics and the mean image from one image in four, and writes the file table and
                    the fingerprints
  ours, all counted what prepare.py does for up to 100,000 images: as before, with statistics of every image

Files are read once beforehand, so the page cache serves all writers alike. Printed are medians over the rounds: images
per second of wall-clock time, and of CPU time, which other jobs on the machine affect less.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tencrop.config import Data, Splits, StoreOptions
from tencrop.data.native.reduce import jpeg_header
from tencrop.data.preparation.statistics import SAMPLED_EVERY
from tencrop.data.preparation.writer import write_split
from tencrop.data.sources.folder import FolderSource
from tencrop.data.store.beton import JPEG, BetonWriter, EncodedSample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    store = StoreOptions(mode="jpeg", short_side=None, max_side=None, quality=90)
    source = FolderSource(
        Data("imagefolder", "", options.folder, Splits(".", "."), None, "beton", store, undecodable="stop")
    )
    for file in source.files["train"]:
        source.read("train", file)
    writers: dict[str, Callable[[Path], None]] = {
        "stock ffcv": lambda root: write_with_ffcv(source, root),
        "ours, copied": lambda root: copy(source, root),
        "ours, verified": lambda root: verified(source, root, store, every=SAMPLED_EVERY),
        "ours, all counted": lambda root: verified(source, root, store, every=1),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in writers}
    num_bytes = {}
    for _ in range(options.rounds):
        for name, write in writers.items():
            root = Path(tempfile.mkdtemp(prefix="tencrop-writing-"))
            clock, processor = time.perf_counter(), processor_seconds()
            write(root)
            seconds = time.perf_counter() - clock, processor_seconds() - processor
            rates[name].append(tuple(len(source.files["train"]) / value for value in seconds))  # type: ignore[arg-type]
            num_bytes[name] = (root / "train.beton").stat().st_size
            shutil.rmtree(root)
    medians = {name: np.median(values, axis=0) for name, values in rates.items()}
    peer = medians["stock ffcv"]
    print(f"{len(source.files['train'])} JPEGs of {options.folder}, one core, median of {options.rounds} rounds")
    print(f"{'':18s} {'img/s':>8s} {'ratio':>6s} {'img/processor s':>16s} {'ratio':>6s} {'MB':>8s}")
    for name, (clock, processor) in medians.items():
        print(
            f"{name:18s} {clock:8.0f} {clock / peer[0]:6.2f} {processor:16.0f} {processor / peer[1]:6.2f}"
            f" {num_bytes[name] / 1e6:8.1f}",
            flush=True,
        )
    os._exit(0)  # ffcv's writer leaves a process or thread behind, for which a normal exit would wait for ever


def write_with_ffcv(source: FolderSource, root: Path) -> None:
    # Imported late, because importing ffcv changes torch's number of threads.
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(root / "train.beton"), fields, num_workers=1).from_indexed_dataset(_Images(source), chunksize=100)
    for worker in multiprocessing.active_children():  # their CPU time counts only once they are joined
        worker.join()


class _Images:
    def __init__(self, source: FolderSource) -> None:
        folder = Path(source.location.path or ".") / source.location.splits["train"]
        self._files = [(folder / file.name, file.label) for file in source.files["train"]]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._files[index]
        with open(path, "rb") as file:
            return Image.open(file).convert("RGB"), label


def copy(source: FolderSource, root: Path) -> None:
    files = source.files["train"]
    digest = hashlib.sha256()

    def sample(content: bytes, label: int) -> EncodedSample:
        header = jpeg_header(content)
        digest.update(hashlib.sha256(content).digest())
        return EncodedSample(content, JPEG, header.height, header.width, label)

    with BetonWriter(root / "train.beton", len(files)) as writer:
        for file in files:
            writer.add(sample(source.read("train", file), file.label))
        writer.finish()


def verified(source: FolderSource, root: Path, store: StoreOptions, *, every: int) -> None:
    write_split(root, "train", source, store, undecodable="stop", num_threads=1, every=every)


def processor_seconds() -> float:
    """CPU time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()

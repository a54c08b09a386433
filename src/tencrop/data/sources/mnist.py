"""MNIST as a source: the four idx files of its authors (LeCun, Cortes and Burges), compressed or not.

    train-images-idx3-ubyte.gz   t10k-images-idx3-ubyte.gz   uint8 [N, 28, 28]
    train-labels-idx1-ubyte.gz   t10k-labels-idx1-ubyte.gz   uint8 [N], the digits

An idx file of bytes begins with 0, 0, 8 (uint8) and its number of dimensions; then each dimension as a big-endian
32-bit integer, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from tencrop.config import UserError
from tencrop.data.sources.source import GENERATED, SourceFile, SourceLocation

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Fashion-MNIST and others copy MNIST's names and sizes, so only check_md5 tells them apart. Published by torchvision.
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
NUM_IMAGES = {"train": 60_000, "val": 10_000}
SIDE, MARGIN = 28, 2  # pixels; with the margin, the 32 x 32 that LeNet-5 reads
HEADER = b"P5 %d %d 255\n" % (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)


class MnistSource:
    """Images as PGM files generated in memory, named DIGIT/train_NUMBER.pgm and DIGIT/test_NUMBER.pgm in their order.

    Each is centered in 32 x 32 pixels, as in LeCun et al. 1998; the added background is 0. Raises UserError for missing
    or damaged files, and unless `subset` for other numbers of images than 60,000 and 10,000.
    """

    def __init__(self, path: Path, *, subset: bool = False) -> None:
        self.classes = [str(digit) for digit in range(10)]
        self.files: dict[str, list[SourceFile]] = {}
        self.left_out: dict[str, Counter[str]] = {}
        self._pixels: dict[str, np.ndarray] = {}
        found: dict[str, Path] = {}
        for split, names in FILES.items():
            found |= {name: _find(path, name) for name in names}
            images, labels = (_read_idx(found[name], num_dims) for name, num_dims in zip(names, (3, 1), strict=True))
            _check(found[names[0]], found[names[1]], images, labels, expected=None if subset else NUM_IMAGES[split])
            self._pixels[split] = images
            prefix = {"train": "train", "val": "test"}[split]
            order = np.argsort(labels, kind="stable")  # sample order: by class, then by number
            self.files[split] = [
                SourceFile(f"{labels[number]}/{prefix}_{number:05d}.pgm", int(labels[number]), num_bytes())
                for number in order
            ]
        archives = {file.name: file.stat().st_size for file in found.values() if file.suffix == ".gz"}
        splits = {split: found[names[0]].name for split, names in FILES.items()}
        self.location = SourceLocation(str(path), splits, dict.fromkeys(FILES, GENERATED), archives)

    def read(self, split: str, file: SourceFile) -> bytes:
        number = int(file.name.rpartition("_")[2].removesuffix(".pgm"))
        return HEADER + np.pad(self._pixels[split][number], MARGIN).tobytes()

    def published_md5(self) -> dict[str, str]:
        return MD5


def num_bytes() -> int:
    """The size of a generated PGM file."""
    return len(HEADER) + (SIDE + 2 * MARGIN) ** 2


def _find(path: Path, name: str) -> Path:
    """The compressed or the extracted file; UserError if there is neither."""
    for file in (path / f"{name}.gz", path / name):
        if file.is_file():
            return file
    raise UserError(f"data.source={path}: has neither {name}.gz nor {name}; put MNIST's four files there")


def _read_idx(path: Path, num_dims: int) -> np.ndarray:
    """The array of an idx file of bytes: uint8 with `num_dims` dimensions; UserError if it is not one."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a gzip file, or damaged ({error}); download it again") from error
    magic = bytes([0, 0, 8, num_dims])
    if content[:4] != magic:
        raise UserError(
            f"{path}: begins with {content[:4].hex() or 'nothing'}, not with {magic.hex()}, as an idx file of"
            f" {'images' if num_dims == 3 else 'labels'} does; download it again"
        )
    start = 4 + 4 * num_dims
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise UserError(
            f"{path}: {len(content):,} bytes, but its header of {' x '.join(map(str, shape))} values needs"
            f" {start + math.prod(shape):,}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check(
    images_file: Path, labels_file: Path, images: np.ndarray, labels: np.ndarray, *, expected: int | None
) -> None:
    """Raise UserError if images and labels do not fit together, or are not `expected` many (None: any number)."""
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise UserError(f"{images_file}: images of {height} x {width} pixels, but MNIST's have {SIDE} x {SIDE}")
    if len(images) != len(labels):
        raise UserError(f"{labels_file}: {len(labels):,} labels for the {len(images):,} images of {images_file.name}")
    if len(labels) and labels.max() > 9:
        raise UserError(f"{labels_file}: a label is {labels.max()}, but MNIST's are the digits 0 to 9")
    if expected is not None and len(images) != expected:
        raise UserError(
            f"{images_file}: {len(images):,} images, but MNIST has {expected:,} there; set data.subset=true if this is"
            " intended"
        )

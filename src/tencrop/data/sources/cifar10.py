"""CIFAR-10 as a source, from its authors' archives (https://www.cs.toronto.edu/~kriz/cifar.html).

    cifar-10-python.tar.gz   pickled dictionaries: data uint8 [10000, 3072], labels
    cifar-10-binary.tar.gz   records of a label and 3,072 pixel bytes

Both hold the images in the same order, as planes of red, green and blue. Either may be extracted.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tencrop.config import UserError
from tencrop.data.sources.archives import small_files
from tencrop.data.sources.source import GENERATED, SourceFile, SourceLocation

# archive: (folder in it, MD5, file of the class names, suffix of the batches)
VERSIONS = {
    "cifar-10-python.tar.gz": ("cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a", "batches.meta", ""),
    "cifar-10-binary.tar.gz": ("cifar-10-batches-bin", "c32a1d4ab5d03f1284b67883e8d87530", "batches.meta.txt", ".bin"),
}
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}
IMAGES_OF_A_BATCH = 10_000
SIDE, RECORD_BYTES = 32, 1 + 3 * 32 * 32


class Cifar10Source:
    """Images as PPM files generated in memory, named CLASS/train_NUMBER.ppm and CLASS/test_NUMBER.ppm in their order.

    Raises UserError for missing or damaged files, and unless `subset` for batches that do not have 10,000 images.
    """

    def __init__(self, path: Path, *, subset: bool = False) -> None:
        archive, files = _find(path)
        _, _, meta, ending = VERSIONS[archive]
        names = _class_names(path / archive, files[meta], ending)
        self.classes = sorted(names, key=os.fsencode)
        # The archives number the classes in an order of their own; ours is sorted, as for every source.
        labels = np.array([self.classes.index(name) for name in names])
        self.files: dict[str, list[SourceFile]] = {}
        self.left_out: dict[str, Counter[str]] = {}
        self._pixels: dict[str, np.ndarray] = {}
        for split, batches in BATCHES.items():
            contents = [_batch(path / archive, batch + ending, files[batch + ending], ending) for batch in batches]
            for batch, (_, batch_labels) in zip(batches, contents, strict=True):
                if not subset and len(batch_labels) != IMAGES_OF_A_BATCH:
                    raise UserError(
                        f"{path / archive}, {batch}: {len(batch_labels):,} images, but CIFAR-10 has"
                        f" {IMAGES_OF_A_BATCH:,} there; set data.subset=true if this is intended"
                    )
            stored = np.concatenate([batch_labels for _, batch_labels in contents])
            if stored.size == 0 or not 0 <= stored.min() <= stored.max() < len(names):
                raise UserError(f"{path / archive}: a label of the {split} images is not one of {len(names)} classes")
            # [N, 3, H, W] to [N, H, W, 3], which is the order of PPM.
            planes = np.concatenate([pixels for pixels, _ in contents]).reshape(-1, 3, SIDE, SIDE)
            self._pixels[split] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
            prefix = {"train": "train", "val": "test"}[split]
            order = np.argsort(labels[stored], kind="stable")  # sample order: by class, then by number
            self.files[split] = [
                SourceFile(f"{self.classes[label]}/{prefix}_{number:05d}.ppm", label, len(self._ppm(split, number)))
                for number, label in ((int(number), int(labels[stored[number]])) for number in order)
            ]
        is_archive = (path / archive).is_file()
        archives = {archive: (path / archive).stat().st_size} if is_archive else {}
        location = archive if is_archive else VERSIONS[archive][0]
        self.location = SourceLocation(
            str(path), dict.fromkeys(BATCHES, location), dict.fromkeys(BATCHES, GENERATED), archives
        )

    def read(self, split: str, file: SourceFile) -> bytes:
        return self._ppm(split, int(file.name.rpartition("_")[2].removesuffix(".ppm")))

    def published_md5(self) -> dict[str, str]:
        return {archive: md5 for archive, (_, md5, _, _) in VERSIONS.items()}

    # PPM: the header and the pixels as they are, so making and reading it costs nothing and loses nothing.
    def _ppm(self, split: str, number: int) -> bytes:
        return b"P6 %d %d 255\n" % (SIDE, SIDE) + self._pixels[split][number].tobytes()


def _find(path: Path) -> tuple[str, dict[str, bytes]]:
    """The archive that is present (or its extracted folder), and its files by name."""
    for archive, (folder, _, meta, ending) in VERSIONS.items():
        # By base name: the folder in the archive may have been renamed.
        wanted = [meta, *(batch + ending for batches in BATCHES.values() for batch in batches)]
        if (path / archive).is_file():
            found = small_files(path / archive, wanted=lambda name: name.rpartition("/")[2] in wanted)  # noqa: B023
            files = {name.rpartition("/")[2]: content for name, content in found.items()}
        elif (path / folder).is_dir():
            files = {name: (path / folder / name).read_bytes() for name in wanted if (path / folder / name).is_file()}
        else:
            continue
        if missing := [name for name in wanted if name not in files]:
            raise UserError(f"{path / archive}: has no {missing[0]}; download it again")
        return archive, files
    raise UserError(f"data.source={path}: has neither {' nor '.join(VERSIONS)}; put one of the two there")


def _class_names(path: Path, content: bytes, ending: str) -> list[str]:
    if ending == ".bin":
        return content.decode(errors="replace").split()
    names = _unpickled(path, content).get("label_names", [])
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _batch(path: Path, name: str, content: bytes, ending: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 3072] and labels [N] of one batch."""
    if ending == ".bin":
        if not content or len(content) % RECORD_BYTES:
            raise UserError(f"{path}, {name}: {len(content)} bytes are not whole images; download it again")
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
        return records[:, 1:], records[:, 0].astype(np.int64)
    batch = _unpickled(path, content)
    pixels, labels = np.asarray(batch.get("data")), np.asarray(batch.get("labels"))
    is_image = pixels.dtype == np.uint8 and pixels.ndim == 2 and pixels.shape[1] == RECORD_BYTES - 1
    if not (is_image and labels.dtype.kind == "i" and labels.shape == (len(pixels),)):
        raise UserError(f"{path}, {name}: not a batch of CIFAR-10; download it again")
    return pixels, labels.astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Loads numbers, strings, lists, dictionaries and NumPy arrays, and refuses a pickle that names anything else."""

    # An ordinary Unpickler would execute whatever code a manipulated file names.

    ALLOWED = (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),  # Python 3 writes bytes in this way for Python 2
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name before NumPy 2
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickled(path: Path, content: bytes) -> dict[str, Any]:
    """Load a dictionary, with its keys as str (Python 2 wrote bytes), without executing code from the file."""
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path}: not a file of CIFAR-10, refused ({error})") from error

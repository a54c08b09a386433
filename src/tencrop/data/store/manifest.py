"""The prepared folder: reads and writes manifest.json, and opens the .beton file and file table of each split.

prepare.py writes the folder; training, evaluation and reports open it. Small facts are in the JSON; whatever grows with
the number of images is in a memory-mapped table, which costs a process nothing until it is read.

    manifest.json     options, classes, counts, statistics, fingerprints, and a digest of these; written last, so a
                      folder with a manifest is complete; a test set has no training split and no statistics
    mean_image.npy    float32 [256, 256, 3], the training split's mean at every pixel
    train.beton       images and labels of the training split (val.beton: of the evaluation split)
    train.files.npy   one row for each sample: name, label, sizes, SHA-256 of the original file and of the payload
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tokenize
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import command_prefix, typed_word
from tencrop.config import StoreOptions, UserError
from tencrop.config.documents import FILE_NAME, Between, NotEmpty, check_shape, read_json
from tencrop.config.fields import as_typed
from tencrop.config.yaml_files import read_yaml_file
from tencrop.data.native.mapped import watch
from tencrop.data.sources.imagenet_test_sets import TEST_SETS
from tencrop.data.sources.source import (
    BETON,
    FLAT,
    GENERATED,
    TAR,
    TREE,
    ZIP,
    Source,
    SourceFile,
    SourceLocation,
    read_original,
)
from tencrop.data.store.beton import Beton
from tencrop.files import atomic_write, file_sha256

FORMAT = "tencrop-data-2"
SPLITS = ("train", "val")
_REMEDY = "delete {root} and prepare the data again (prepare.py)"
# The shape of a manifest, checked when it is read. Entries that only people read (kinds, converted) are not listed.
_COUNT = Between(0, 2**63 - 1)
_TRIPLE = [float, float, float]
_SPLIT = {
    "num_samples": Between(1, 2**63 - 1),
    "store": {str: object},
    "beton": str,
    "beton_bytes": _COUNT,
    "tables_sha256": str,
    "files": str,
    "files_bytes": _COUNT,
    "files_sha256": str,
    "source_fingerprint": str,
    "store_fingerprint": str,
    "skipped": [{"name": FILE_NAME}],
}
_ROUTE = {TREE, FLAT, TAR, ZIP, GENERATED, BETON}
SHAPE = {
    "name": str,
    "options": {str: object},
    "classes": NotEmpty(FILE_NAME),
    "splits": {"train": _SPLIT, "val": _SPLIT},
    "statistics": {
        "mean": _TRIPLE,
        "std": _TRIPLE,
        "covariance": [_TRIPLE] * 3,
        "eigenvalues": _TRIPLE,
        "eigenvectors": [_TRIPLE] * 3,
        "num_images": _COUNT,
        "num_pixels": _COUNT,
    },
    "mean_image": str,
    "mean_image_sha256": str,
    "source": {
        "path": (FILE_NAME, None),
        "splits": {"train": FILE_NAME, "val": FILE_NAME},
        "routes": {"train": _ROUTE, "val": _ROUTE},
        "archives": {str: _COUNT},
    },
    "sha256?": str,
}
_OF_TRAINING = ("statistics", "mean_image", "mean_image_sha256")
TEST_SET_SHAPE = {key: shape for key, shape in SHAPE.items() if key not in _OF_TRAINING} | {
    "splits": {"val": _SPLIT},
    "source": {"path": FILE_NAME, "splits": {"val": FILE_NAME}, "routes": {"val": _ROUTE}, "archives": {str: _COUNT}},
}
# The part of the data's manifest that a run folder keeps.
_RUN_SPLIT = {key: _SPLIT[key] for key in ("num_samples", "source_fingerprint", "store_fingerprint")}
RUN_DATA_SHAPE = {"name": str, "classes": SHAPE["classes"], "splits": {"train": _RUN_SPLIT, "val": _RUN_SPLIT}}


def read_manifest(root: str | Path, data: str = "imagefolder", *, store: StoreOptions | None = None) -> dict[str, Any]:
    """Read manifest.json of a prepared folder; if there is none, UserError with the command that prepares one.

    For that command: `data` is the name of the data group (conf/data), and `store` how the recipe wants them stored.
    """
    path = Path(root) / "manifest.json"
    folders = {"digits": "", "beton": " data.source=FOLDER_OF_BETON_FILES"}
    source = folders.get(data, " data.source=FOLDER_OF_IMAGES")
    words = [f"data={data}{source}", *_store_words(data, store), typed_word("data.root", root)]
    prepare = f"{command_prefix('prepare')} {' '.join(words)}"
    if not path.is_file():
        raise UserError(f"data.root={root}: holds no prepared data (no manifest.json); prepare it with: {prepare}")
    what, remedy = "a manifest of prepared data", f"delete {root} and run: {prepare}"
    manifest = read_json(path, {"format": str}, what=what, remedy=remedy)
    # Before the shape: a manifest of another format would fail it with a message that does not tell how to go on.
    if (found := manifest["format"]) != FORMAT:
        raise UserError(f"{path}: format {found}, but this code reads {FORMAT}; prepare again elsewhere: {prepare}")
    try:
        check_shape(manifest, {"name": str})  # a list could not be looked up below
        check_shape(manifest, TEST_SET_SHAPE if manifest["name"] in TEST_SETS else SHAPE)
    except ValueError as error:
        raise UserError(f"{path}: not {what} ({error}); {remedy}") from error
    if "sha256" in manifest and manifest["sha256"] != manifest_sha256(manifest):
        raise UserError(f"{path}: was changed or damaged after it was written; {remedy}")
    return manifest


def _store_words(data: str, store: StoreOptions | None) -> list[str]:
    """The options that differ from those of the data group, as typed."""
    if store is None:
        return []
    stated = read_yaml_file(CONF / "data" / f"{data}.yaml")["store"]
    return [
        f"data.store.{key}={as_typed(value)}"
        for key, value in dataclasses.asdict(store).items()
        if value != stated.get(key)
    ]


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json atomically, with its digest."""
    content = {**manifest, "sha256": manifest_sha256(manifest)}
    atomic_write(root / "manifest.json", (json.dumps(content, indent=1) + "\n").encode())


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a manifest, of data or of a run, without its own digest.

    Takes 5 ms for ImageNet's 1,000 classes. Manifests of early versions have no digest.
    """
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_table(num_files: int, name_bytes: int) -> np.ndarray:
    """An empty file table, one row for each sample; a name is class/file, at most `name_bytes` bytes (os.fsencode)."""
    row = [
        ("name", f"S{name_bytes}"),
        # Little-endian on every machine, since files_sha256 covers these bytes.
        ("label", "<i4"),
        ("kind", "u1"),  # index into encode.KINDS
        ("mode", "u1"),  # of the payload: beton.JPEG | RAW
        ("offset", "<u8"),  # of the original file in its archive; 0 if it is not in one
        ("bytes", "<u8"),  # of the original file
        ("sha256", "u1", 32),  # of the original file
        ("payload_sha256", "u1", 32),  # of the stored bytes
        ("height", "<i4"),  # of the original, pixels
        ("width", "<i4"),
        ("stored_height", "<i4"),
        ("stored_width", "<i4"),
    ]
    return np.zeros(num_files, np.dtype(row))


def _is_row(dtype: np.dtype) -> bool:
    """Whether this is the dtype of a file table's row, with names of any length."""
    name, *others = dtype.descr
    return name[0] == "name" and dtype["name"].kind == "S" and others == file_table(0, 1).dtype.descr[1:]


def source_fingerprint(table: np.ndarray) -> str:
    """SHA-256 (hexadecimal) over name, label and content hash of every file of a split, in index order."""
    # Independent of store options: two preparations of the same files share it, so results on both are comparable.
    digest = hashlib.sha256()
    for name, label, sha256 in zip(table["name"], table["label"], table["sha256"], strict=True):
        digest.update(name + b"\0%d\0" % label + sha256.tobytes())
    return digest.hexdigest()


def store_fingerprint(table: np.ndarray, options: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) over store options, the stored bytes of every sample, and the source's fingerprint."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    columns = (table[name] for name in ("mode", "stored_height", "stored_width", "payload_sha256"))
    for mode, height, width, sha256 in zip(*columns, strict=True):
        digest.update(b"%d %d %d " % (mode, height, width) + sha256.tobytes())
    digest.update(source_fingerprint(table).encode())
    return digest.hexdigest()


def open_split(root: str | Path, name: str, *, source: str | None = None, data: str = "imagefolder") -> Split:
    """Open the split "train" or "val" of a prepared folder.

    `source`: where the original files are now, if they were moved after preparation. Raises UserError if the folder is
    not prepared, or one of its files is missing, truncated or from another preparation.
    """
    # Manifest, mean image and the tables of the .beton file are compared with their digests. Hashing the payloads and
    # the file table (200 MB for ImageNet) would delay every start, so only prepare.py verify=true does that.
    manifest = read_manifest(root, data)
    if name not in manifest["splits"]:
        raise UserError(f"{root}: prepared without a split {name}; it has {', '.join(manifest['splits'])}")
    if "mean_image" in manifest:
        check_file(Path(root) / manifest["mean_image"], manifest["mean_image_sha256"])
    return Split(Path(root), name, manifest, source)


def check_file(path: Path, sha256: str) -> None:
    """Raise UserError unless the file exists and has this SHA-256 (2 ms for the mean image)."""
    found = file_sha256(path) if path.is_file() else None
    if found != sha256:
        state = "is missing" if found is None else "is not the file that was written"
        raise UserError(f"{path}: {state}; {_REMEDY.format(root=path.parent)}")


class Split:
    """The samples of a split: payloads, sizes, labels, names and original files.

    A sample's index is its rank among the pairs (class folder, file name) of the split, sorted bytewise. That order is
    independent of the file system and the locale, so the index identifies a sample on every machine.
    """

    num_samples: int
    labels: np.ndarray  # int64 [N]
    stored_sizes: np.ndarray  # uint16 [N, 2], height and width in the store

    def __init__(self, root: Path, name: str, manifest: dict[str, Any], source: str | None = None) -> None:
        self.root, self.name, self.manifest = root, name, manifest
        # Of the training split, whichever split this is: those of the manifest, and mean_image, float32 [256, 256, 3].
        # Empty for a test set.
        self.statistics: dict[str, Any] = {}
        if "statistics" in manifest:
            mean_image = np.load(root / manifest["mean_image"], allow_pickle=False)
            self.statistics = {**manifest["statistics"], "mean_image": mean_image}
        facts = manifest["splits"][name]
        self.num_samples = facts["num_samples"]
        self.source_fingerprint: str = facts["source_fingerprint"]
        self.store_fingerprint: str = facts["store_fingerprint"]
        self.check_sizes()
        self.beton = Beton(root / facts["beton"])
        if self.beton.tables_sha256 != facts["tables_sha256"]:
            raise UserError(
                f"{root / facts['beton']}: its tables do not match the manifest: it is damaged, or from another"
                f" preparation; {_REMEDY.format(root=root)}"
            )
        try:
            self.files = np.load(root / facts["files"], mmap_mode="r", allow_pickle=False)
            watch(self.files, root / facts["files"], remedy=_REMEDY.format(root=root))
            is_table = self.files.shape == (self.num_samples,) and _is_row(self.files.dtype)
        # NumPy evaluates an .npy header with Python's parser, hence the last two exceptions for a damaged one.
        except (ValueError, OSError, SyntaxError, tokenize.TokenError) as error:
            raise UserError(f"{root / facts['files']}: not a table of files; {_REMEDY.format(root=root)}") from error
        if not is_table or self.beton.num_samples != self.num_samples:
            raise UserError(
                f"{root / facts['files']}: not the table of the {self.num_samples} files of {facts['beton']};"
                f" {_REMEDY.format(root=root)}"
            )
        # From the .beton file, which is what the loader reads; verify.py compares the file table with it.
        # Views of the mapped file, so that the ranks of a machine share the memory.
        self.labels, self.stored_sizes = self.beton.labels, self.beton.sizes
        location = SourceLocation(
            **{field.name: manifest["source"][field.name] for field in dataclasses.fields(SourceLocation)}
        )
        self._location = dataclasses.replace(location, path=source) if source and location.path else location

    def check_sizes(self) -> None:
        """Raise UserError if a file of the split is missing or does not have its original size."""
        facts = self.manifest["splits"][self.name]
        for file, num_bytes in ((facts["beton"], facts["beton_bytes"]), (facts["files"], facts["files_bytes"])):
            self._check_size(self.root / file, num_bytes)

    def names(self, index: int) -> str:
        """The name of a sample: class folder and file name."""
        return os.fsdecode(self.files["name"][index])

    @cached_property
    def original_sizes(self) -> np.ndarray:
        """int32 [N, 2], height and width of the original files."""
        return np.stack([self.files["height"], self.files["width"]], axis=1).astype(np.int32)

    def read_original(self, index: int) -> bytes:
        """The bytes of the original file; UserError if it is gone or has changed since preparation."""
        row = self.files[index]
        file = SourceFile(self.names(index), int(row["label"]), int(row["bytes"]), int(row["offset"]))
        route = self._location.routes[self.name]
        if route == GENERATED:
            content = self._maker.read(self.name, file)
        elif route == BETON:
            content = self.beton.image_file(index)
        else:
            content = read_original(self._location, self.name, file)
        if hashlib.sha256(content).digest() != row["sha256"].tobytes():  # costs 1% of decoding it
            raise UserError(
                f"{self._location.path}: {file.name} is no longer the file that was prepared; prepare the data again"
            )
        return content

    @cached_property
    def _maker(self) -> Source:
        """The source that generates its images in memory, if there are no image files."""
        if self._location.path is None:
            from tencrop.data.sources.digits import DigitsSource  # imports scikit-learn, which other data do not need

            return DigitsSource()
        from tencrop.data.sources.cifar10 import Cifar10Source
        from tencrop.data.sources.mnist import MnistSource

        source = MnistSource if self.manifest["name"] == "mnist" else Cifar10Source
        return source(Path(self._location.path), subset=True)  # no count: prepare.py has checked it

    def _check_size(self, path: Path, num_bytes: int) -> None:
        found = path.stat().st_size if path.is_file() else None
        if found != num_bytes:
            missing = f"links to {path.readlink()}, which is gone" if path.is_symlink() else "is missing"
            state = missing if found is None else f"has {found} bytes and not the {num_bytes} that were written"
            raise UserError(f"{path}: {state}; {_REMEDY.format(root=self.root)}")

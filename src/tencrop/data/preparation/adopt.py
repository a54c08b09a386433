"""Prepares .beton files that ffcv's own DatasetWriter wrote (data=beton): checks and links them without copying.

A file needs an image field and an integer field, in either order, with any names. Every image is decoded, as with other
sources. The prepared folder gets a symbolic link to the file instead of a store of its own.

The format records neither file names nor original sizes. An image is therefore named by its label and its index in the
file, a class by its label, and the stored size replaces the original size. The sample index is the index in the file.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tencrop.config import Data, StoreOptions, UserError
from tencrop.data.preparation.statistics import ColorSums
from tencrop.data.preparation.writer import CHUNK_FILES, map_in_order, split_facts, table_row, write_npy
from tencrop.data.sources.folder import check_num_classes, source_folder
from tencrop.data.sources.source import BETON, SourceFile, SourceLocation
from tencrop.data.store.beton import JPEG, Beton
from tencrop.data.store.encode import PLAIN_KINDS, Undecodable, encode
from tencrop.data.store.manifest import file_table

ENDINGS = (".beton", ".ffcv")  # the first in ffcv's documentation, the second in ffcv-imagenet's scripts
AS_STORED = StoreOptions(mode="jpeg", short_side=None, max_side=None, quality=95)  # as in conf/data/beton.yaml
NOT_RECORDED = ("names of the original images", "their sizes", "names of the classes")
WRITE_AGAIN = "write it again with ffcv's DatasetWriter, with an RGBImageField and an IntField"
MAX_CLASSES = 1 << 24  # a larger "label" must be something else, such as an image number


class BetonSource:
    """Source that reads one .beton file per split; `read` returns a JPEG's stored bytes, or raw pixels as a PPM file.

    Raises UserError if a file is missing or damaged, has other fields, or has labels other than 0 to K - 1.
    """

    def __init__(self, data: Data) -> None:
        _check_options(data)
        path = source_folder(data)
        names = {split: _find_file(path, split, name) for split, name in dataclasses.asdict(data.splits).items()}
        self.betons = {split: _open_beton(path / name) for split, name in names.items()}
        num_bytes = {name: (path / name).stat().st_size for name in names.values()}
        # With their sizes, like archives: a file that was written again is noticed without reading it.
        self.location = SourceLocation(str(path), names, dict.fromkeys(names, BETON), num_bytes)
        self.classes = _classes(self.betons["train"], self.betons["val"])
        check_num_classes(data, self.classes)
        self.left_out: dict[str, Counter[str]] = {}  # empty: every row of the table is an image
        self.files = {split: _files(beton) for split, beton in self.betons.items()}

    def read(self, split: str, file: SourceFile) -> bytes:
        return self.betons[split].image_file(file.offset)  # `offset` is the index in the file (route BETON)

    def published_md5(self) -> dict[str, str]:
        return {}


def adopt_split(
    root: Path,
    split: str,
    source: BetonSource,
    *,
    num_threads: int,
    every: int | None = None,
    advance: Callable[[int], None] = lambda num_files: None,
) -> tuple[dict[str, Any], ColorSums]:
    """Link <split>.beton to the source's file, and write <split>.files.npy; returns what `write_split` returns.

    Raises UserError at the first image that cannot be decoded, or whose size differs from the file's table.
    """
    # Unlike `write_split`, this starts over after an interruption: it only checks, and has no output worth saving.
    beton, files = source.betons[split], source.files[split]
    table, total = file_table(len(files), max(len(file.name) for file in files)), ColorSums()
    check = partial(_check_images, source, split, every=every)
    for start, (rows, sums) in map_in_order(check, range(0, len(files), CHUNK_FILES), num_threads=num_threads):
        for number, row in enumerate(rows, start):
            table[number] = row
        total.merge(sums)
        advance(len(rows))
    link, names = root / f"{split}.beton", root / f"{split}.files.npy"
    # A symbolic link, because hard links fail across file systems; no copy, because these files are hundreds of GB.
    link.unlink(missing_ok=True)
    link.symlink_to(beton.path)
    write_npy(names, table)
    # In place of store options: a .beton file does not tell with which ones it was written.
    facts = split_facts(link, names, table, {"adopted": True}, num_classes=len(source.classes))
    return {**facts, "tables_sha256": beton.tables_sha256}, total


def adoption_notice(root: Path, source: BetonSource) -> str:
    """The message to print before the images are read."""
    counts = " and ".join(f"{len(files):,} {split}" for split, files in source.files.items())
    files = ", ".join(f"{split} from {name}" for split, name in source.location.splits.items())
    return (
        f"beton: {counts} images of {len(source.classes):,} classes ({files}) -> {root}\n"
        "every image is checked; the files are used in place, not copied\n"
        f"such files do not record: {', '.join(NOT_RECORDED)}"
    )


def check_root(root: Path, source: BetonSource) -> None:
    """Raise UserError if the user's own .beton files are in the prepared folder itself."""
    # A failed preparation empties the prepared folder, and our error messages tell users to delete it.
    own = {beton.path.resolve() for beton in source.betons.values()}
    links = [root / f"{split}.beton" for split in source.betons]
    own |= {path.resolve() for path in links if path.is_file() and not path.is_symlink()}
    if found := [path for path in sorted(own) if path.parent == root.resolve()]:
        raise UserError(
            f"data.root={root}: holds {found[0].name} itself; choose a separate folder, such as"
            f" data.root={root / 'prepared'}"
        )


def _check_images(source: BetonSource, split: str, start: int, *, every: int | None) -> tuple[list[tuple], ColorSums]:
    """Check CHUNK_FILES images from index `start` on; returns their rows for the file table and their color sums."""
    beton, rows, sums = source.betons[split], [], ColorSums()
    for file in source.files[split][start : start + CHUNK_FILES]:
        index = file.offset
        is_counted = every is not None and index % every == 0
        where, mode = f"{beton.path}: image {index} (label {file.label})", int(beton.modes[index])
        try:
            encoded = encode(source.read(split, file), file.label, AS_STORED, index=index, with_pixels=is_counted)
        except Undecodable as error:
            raise UserError(f"{where} cannot be decoded ({error}); {WRITE_AGAIN}") from error
        # `encode` can convert such an image, but the loader would decode the unconverted payload.
        if mode == JPEG and encoded.kind not in PLAIN_KINDS:
            raise UserError(f"{where} is damaged, or not an RGB or grayscale JPEG ({encoded.kind}); {WRITE_AGAIN}")
        size, listed = (encoded.height, encoded.width), (int(beton.heights[index]), int(beton.widths[index]))
        if size != listed:
            raise UserError(f"{where} has {size[1]} x {size[0]} pixels, but its table entry {listed[1]} x {listed[0]};"
                            f" {WRITE_AGAIN}")  # fmt: skip
        if encoded.pixels is not None:
            sums.add(encoded.pixels, *size)
        rows.append(table_row(file, encoded if mode == JPEG else encoded._replace(kind="raw")))
    return rows, sums


def _check_options(data: Data) -> None:
    """Raise UserError for options that would require converting or skipping images."""
    for key, value in dataclasses.asdict(data.store).items():
        if value != getattr(AS_STORED, key):
            raise UserError(f"data.store.{key}={value}: data=beton uses the images as they are stored; leave it out")
    if data.undecodable != "stop":
        raise UserError(f"data.undecodable={data.undecodable}: data=beton cannot skip images; leave it out")


def _find_file(folder: Path, split: str, name: str) -> str:
    """Find a split's file in `folder`: `name` itself, or else the only file NAME*.beton or NAME*.ffcv."""
    # Names are matched by their beginning, because ffcv-imagenet's scripts append parameters: train_500_0.50_90.ffcv.
    if (folder / name).is_file():
        return name
    found = sorted(path.name for path in folder.iterdir() if path.name.startswith(name) and path.suffix in ENDINGS)
    if len(found) == 1:
        return found[0]
    there = f"holds {', '.join(found)}" if found else f"holds no file {name}*.beton or {name}*.ffcv"
    raise UserError(f"data.source={folder}: {there}; name the file of the {split} split with data.splits.{split}=FILE")


def _open_beton(path: Path) -> Beton:
    try:
        return Beton(path)
    except UserError as error:  # its remedy is meant for files that prepare.py wrote; replace it
        raise UserError(f"{str(error).rpartition(';')[0]}; {WRITE_AGAIN}") from error


def _classes(train: Beton, val: Beton) -> list[str]:
    """Class names: the labels 0 to K - 1 of the training file, as strings. Raises UserError for any other labels."""
    for beton in (train, val):
        if not beton.num_samples:
            raise UserError(f"{beton.path}: holds no image; {WRITE_AGAIN}")
        low, high = int(beton.labels.min()), int(beton.labels.max())
        if not 0 <= low <= high < MAX_CLASSES:
            raise UserError(f"{beton.path}: labels are {low} to {high}, but must be classes 0 to K - 1; {WRITE_AGAIN}")
    per_class = np.bincount(train.labels)  # its length is at most MAX_CLASSES
    if not per_class.all():
        raise UserError(f"{train.path}: no image has label {per_class.argmin()}; {WRITE_AGAIN}")
    if (most := int(val.labels.max())) >= len(per_class):
        raise UserError(f"{val.path}: has label {most}, but {train.path} has 0 to {len(per_class) - 1}; {WRITE_AGAIN}")
    return [str(label) for label in range(len(per_class))]


def _files(beton: Beton) -> list[SourceFile]:
    columns = (beton.labels.tolist(), beton.payload_bytes.tolist())
    rows = enumerate(zip(*columns, strict=True))
    return [SourceFile(f"{label}/{index:08d}", label, num_bytes, index) for index, (label, num_bytes) in rows]

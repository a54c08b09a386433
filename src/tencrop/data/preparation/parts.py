"""Checkpoints of a preparation ("parts"), so that an interrupted one continues where it stopped.

After every PART_FILES files the .beton file is flushed to disk, and then SPLIT.partNUMBER.npz is written atomically:
the rows of the file table, the positions of the payloads and the color sums of these files. A part is used only if its
key matches the present files, options and library versions. Parts are removed once the manifest is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import PIL.features

from tencrop.config import StoreOptions
from tencrop.data.preparation.statistics import ColorSums
from tencrop.data.sources.source import SourceFile
from tencrop.data.store.beton import SAMPLE, end_of_payloads
from tencrop.data.store.encode import ENCODING
from tencrop.data.store.manifest import FORMAT, SPLITS, file_table
from tencrop.files import atomic_write, partial_name

# Files that a kill may cost: some seconds on two cores. ImageNet has 626 parts of half a megabyte.
PART_FILES = 1 << 11


@dataclass
class Part:
    """What was written of PART_FILES consecutive files."""

    rows: np.ndarray  # of the file table
    metadata: np.ndarray  # SAMPLE
    payload_bytes: np.ndarray  # uint64
    skipped: list[dict[str, str]]  # name and reason of undecodable files


def empty_part() -> Part:
    return Part(file_table(0, 1), np.zeros(0, SAMPLE), np.zeros(0, np.uint64), [])


def part_ranges(num_files: int) -> list[range]:
    """The range of file indices of each part."""
    return [range(start, min(start + PART_FILES, num_files)) for start in range(0, num_files, PART_FILES)]


def part_keys(files: list[SourceFile], options: StoreOptions, every: int | None) -> list[str]:
    """One hash for each part of a split, over everything that determines its bytes."""
    # Library versions are included: another libjpeg-turbo encodes other bytes, and a store must not mix two.
    versions = [FORMAT, ENCODING, PIL.__version__, PIL.features.version("libjpeg_turbo")]
    common = json.dumps([dataclasses.asdict(options), versions, len(files), every], sort_keys=True).encode()
    return [
        hashlib.sha256(common + repr(files[ranks.start : ranks.stop]).encode(errors="surrogateescape")).hexdigest()
        for ranks in part_ranges(len(files))
    ]


def write_part(root: Path, split: str, number: int, key: str, part: Part, sums: ColorSums) -> None:
    """Write a part with the color sums of its files, atomically. The payloads must be on disk already."""
    buffer = io.BytesIO()
    np.savez_compressed(  # the sum image is most of it: 256 x 256 x 3 int64, which compress well
        buffer,
        key=np.frombuffer(key.encode(), np.uint8),  # bytes: a string array would need pickle or a fixed width
        rows=part.rows,
        metadata=part.metadata,
        payload_bytes=part.payload_bytes,
        skipped=np.frombuffer(json.dumps(part.skipped).encode(), np.uint8),
        counts=np.array([sums.num_images, sums.num_pixels], np.int64),
        color=sums.color,
        image=sums.image,
    )
    atomic_write(_path(root, split, number), buffer.getvalue())


def read_parts(root: Path, split: str, keys: list[str], *, undecodable: str) -> tuple[list[Part], ColorSums]:
    """Read the leading parts that exist and match their keys, and their color sums. Removes all other parts; if none
    matches, the split's complete files, too.

    Returns none if the payloads themselves are missing.
    """
    parts: list[Part] = []
    total = ColorSums()
    # Leading parts only: payloads are consecutive, so everything after the first missing part is written again.
    for number, key in enumerate(keys):
        found = _read_part(_path(root, split, number), key)
        # A part that skipped files is of no use to a preparation that must stop at them.
        if found is None or (found[0].skipped and undecodable == "stop"):
            break
        parts.append(found[0])
        total.merge(found[1])
    if parts and not _payloads_are_there(root / f"{split}.beton", concatenated(parts)):
        parts, total = [], ColorSums()
    if not parts:  # without a part, the next attempt would take these for files of the user
        for end in ("beton", "files.npy"):
            (root / f"{split}.{end}").unlink(missing_ok=True)
    for path in root.glob(f"{split}.part*.npz"):
        if path.name not in {_path(root, split, number).name for number in range(len(parts))}:
            path.unlink()
    return parts, total


def concatenated(parts: list[Part]) -> Part:
    """Concatenate parts into one."""
    if not parts:
        return empty_part()
    return Part(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.metadata for part in parts]),
        np.concatenate([part.payload_bytes for part in parts]),
        [entry for part in parts for entry in part.skipped],
    )


def remove_parts(root: Path) -> None:
    """Delete all parts: after the preparation is complete, or when it cannot be completed."""
    for split in SPLITS:
        for path in root.glob(f"{split}.part*.npz"):
            path.unlink()


def has_parts(root: Path, *splits: str) -> bool:
    """Whether there is a part, of these splits or of any, from which another attempt can continue."""
    return any(True for split in splits or SPLITS for _ in root.glob(f"{split}.part*.npz"))


def _path(root: Path, split: str, number: int) -> Path:
    return root / f"{split}.part{number:05d}.npz"


def _read_part(path: Path, key: str) -> tuple[Part, ColorSums] | None:
    if not path.is_file():
        return None
    # Reading a damaged part may raise anything (zipfile, zlib, NumPy, Python's parser); its files are encoded again.
    with contextlib.suppress(Exception), np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        if arrays["key"].tobytes().decode(errors="replace") == key:
            sums = ColorSums()
            sums.num_images, sums.num_pixels = (int(count) for count in arrays["counts"])
            sums.color, sums.image = arrays["color"], arrays["image"]
            skipped = json.loads(arrays["skipped"].tobytes())
            return Part(arrays["rows"], arrays["metadata"], arrays["payload_bytes"], skipped), sums
    return None


def _payloads_are_there(beton: Path, part: Part) -> bool:
    if beton.is_file():  # complete: the preparation stopped later
        return True
    # Payloads are flushed before their part is written, so the size tells whether they are complete.
    partial = partial_name(beton)
    needed = end_of_payloads(part.metadata, part.payload_bytes) if len(part.metadata) else 0
    return partial.is_file() and partial.stat().st_size >= needed

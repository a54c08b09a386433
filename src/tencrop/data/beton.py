"""ffcv's file format (.beton, version 2): an image and an integer label a sample; stock ffcv reads these files.

Called by prepare (writes) and by the loader (reads). ffcv's own writer places samples by worker timing, so its
files differ from run to run; this one writes them in index order, so the same samples give the same bytes.

Layout: header | two field descriptors | metadata of every sample | payloads | allocation table. A payload never
crosses a multiple of the page size, counted from the start of the file: ffcv may read page by page.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tencrop.config import UserError

JPEG, RAW = 0, 1  # modes of a payload: a JPEG file | height x width x 3 bytes, RGB
MIN_PAGE_BYTES = 1 << 23
MAX_PAYLOAD_BYTES = 1 << 31  # the header keeps the page size in 32 bits, and pages are powers of two

VERSION = 2
IMAGE_FIELD, INT_FIELD = 2, 1  # ffcv's type ids of RGBImageField and IntField
# as in ffcv/types.py and ffcv/fields: little-endian, aligned as a C compiler would
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
METADATA_START = HEADER.itemsize + 2 * FIELD.itemsize


class EncodedSample(NamedTuple):
    payload: bytes
    mode: int  # JPEG | RAW
    height: int  # pixels, at most 65,535
    width: int
    label: int


def write_beton(path: str | Path, samples: Iterable[EncodedSample], num_samples: int) -> int:
    """Write at most `num_samples` samples in the order given; return how many came.

    The file appears under its name only when complete and on disk; an error (OSError of a full disk, or one
    raised by `samples`) leaves nothing.
    """
    with whole_file(Path(path)) as file:
        return _write(file, samples, num_samples)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name in the same folder; brought to disk and renamed at the end, gone after an error."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder (a rename, say) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(file: BinaryIO, samples: Iterable[EncodedSample], num_samples: int) -> int:
    metadata = np.zeros(num_samples, SAMPLE)
    allocations = np.zeros(num_samples, ALLOCATION)
    page_size = MIN_PAGE_BYTES
    position = METADATA_START + metadata.nbytes
    file.seek(position)
    count = 0
    for payload, mode, height, width, label in samples:
        size = len(payload)
        assert 0 < size <= MAX_PAYLOAD_BYTES and max(height, width) < 1 << 16 and count < num_samples
        # A larger page holds whole smaller ones, so what was written stays within one page of the new size.
        while size > page_size:
            page_size *= 2
        if position // page_size != (position + size - 1) // page_size:
            start = -(-position // page_size) * page_size
            file.write(bytes(start - position))
            position = start
        file.write(payload)
        metadata[count] = ((mode, width, height, position), label)
        allocations[count] = (count, position, size)
        position += size
        count += 1
    file.write(allocations[:count].tobytes())

    fields = np.zeros(2, FIELD)
    for field, type_id, name in zip(fields, (IMAGE_FIELD, INT_FIELD), (b"image", b"label"), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    header = np.array((VERSION, 2, page_size, count, position), HEADER)
    file.seek(0)
    file.write(header.tobytes() + fields.tobytes() + metadata[:count].tobytes())
    return count


class Beton:
    """A .beton file, memory-mapped; written by `write_beton` or by ffcv with one image and one integer field.

    Raises UserError where the file is missing, truncated or another kind of file.
    """

    num_samples: int
    page_size: int  # bytes
    modes: np.ndarray  # uint8 [N], JPEG | RAW
    heights: np.ndarray  # uint16 [N], pixels as stored
    widths: np.ndarray  # uint16 [N]
    labels: np.ndarray  # int64 [N]
    pointers: np.ndarray  # uint64 [N], where a payload begins in `data`
    payload_bytes: np.ndarray  # uint64 [N]
    data: np.ndarray  # uint8 [bytes of the file], memory-mapped, read-only

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: there is no such file; prepare the data again (prepare.py)")
        if self.path.stat().st_size < METADATA_START:
            raise UserError(f"{path}: too short for a .beton file; prepare the data again (prepare.py)")
        self.data = np.memmap(self.path, np.uint8, mode="r")
        header = self.data[: HEADER.itemsize].view(HEADER)[0]
        fields = self.data[HEADER.itemsize : METADATA_START].view(FIELD)
        if header["version"] != VERSION or header["num_fields"] != 2:
            raise UserError(f"{path}: not a .beton file of version {VERSION} with two fields; prepare.py writes one")
        if list(fields["type_id"]) != [IMAGE_FIELD, INT_FIELD]:
            raise UserError(f"{path}: its fields are not an image and an integer label; prepare.py writes such a file")
        self.num_samples = int(header["num_samples"])
        self.page_size = int(header["page_size"])
        self._read_tables(int(header["alloc_table_ptr"]))

    def payload(self, index: int) -> np.ndarray:
        """The stored bytes of one sample, uint8 [bytes], not copied."""
        start = int(self.pointers[index])
        return self.data[start : start + int(self.payload_bytes[index])]

    def _read_tables(self, table_start: int) -> None:
        metadata_end = METADATA_START + self.num_samples * SAMPLE.itemsize
        table_end = table_start + self.num_samples * ALLOCATION.itemsize
        if metadata_end > table_start or table_end != self.data.size:
            raise UserError(
                f"{self.path}: {self.data.size} bytes where its header speaks of {table_end}: truncated or damaged;"
                " delete the prepared folder and prepare again (prepare.py)"
            )
        metadata = self.data[METADATA_START:metadata_end].view(SAMPLE)
        self.modes = metadata["image"]["mode"].copy()
        self.heights = metadata["image"]["height"].copy()
        self.widths = metadata["image"]["width"].copy()
        self.pointers = metadata["image"]["data_ptr"].copy()
        self.labels = metadata["label"].copy()
        allocations = self.data[table_start:].view(ALLOCATION)
        self.payload_bytes = np.zeros(self.num_samples, np.uint64)
        if self.num_samples and int(allocations["sample_id"].max()) < self.num_samples:
            self.payload_bytes[allocations["sample_id"]] = allocations["size"]
        ends = self.pointers + self.payload_bytes
        raw_bytes = 3 * self.heights.astype(np.uint64) * self.widths
        sound = (
            (self.modes <= RAW)
            & (self.payload_bytes > 0)
            & (self.pointers >= metadata_end)
            & (ends <= table_start)
            & (ends >= self.pointers)
            & ((self.modes == JPEG) | (self.payload_bytes == raw_bytes))
        )
        if not sound.all():
            raise UserError(
                f"{self.path}: sample {int(np.argmin(sound))} points to where no image can be: damaged;"
                " delete the prepared folder and prepare again (prepare.py)"
            )

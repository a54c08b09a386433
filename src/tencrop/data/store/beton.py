"""Reads and writes ffcv's file format (.beton, version 2): an image and an integer label for each sample.

Stock ffcv reads these files. ffcv's own writer places samples in the order in which its workers finish, so its files
differ from run to run; this one writes them in index order, so the same samples give the same bytes.

Layout: header | two field descriptors | metadata of every sample | payloads | allocation table. A payload never
crosses a multiple of the page size, counted from the start of the file, because ffcv may read page by page.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tencrop.config import UserError
from tencrop.data.native.mapped import watch
from tencrop.files import partial_name, sync_folder

JPEG, RAW = 0, 1  # modes of a payload: a JPEG file | height x width x 3 bytes of RGB; ffcv's numbers
MIN_PAGE_BYTES = 1 << 23  # ffcv's default page size
MAX_PAYLOAD_BYTES = 1 << 31  # the header has 32 bits for the page size, and pages are powers of two

VERSION = 2
IMAGE_FIELD, INT_FIELD = 2, 1  # ffcv's type ids of RGBImageField and IntField
# The structs of ffcv/types.py and ffcv/fields: little-endian, aligned like C structs except for IMAGE, which is packed.
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
LABEL_FIRST = np.dtype([("label", "<i8"), ("image", IMAGE)], align=True)  # files whose author listed the label first
SAMPLES = {(IMAGE_FIELD, INT_FIELD): SAMPLE, (INT_FIELD, IMAGE_FIELD): LABEL_FIRST}
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
TABLE_BLOCK = 1 << 16  # rows that are checked and hashed at a time; all 14 million at once took 1.8 GB a rank
METADATA_START = HEADER.itemsize + 2 * FIELD.itemsize


class EncodedSample(NamedTuple):
    payload: bytes
    mode: int  # JPEG | RAW
    height: int  # pixels, at most 65,535
    width: int
    label: int


class BetonWriter:
    """Writes samples in order, and can continue an interrupted file.

    The file has a temporary name until it is complete and on disk (`finish`). `num_samples` is the maximum number of
    samples. To continue, pass `metadata` (SAMPLE) and `payload_bytes` (uint64) of the samples that the temporary file
    holds since the last `sync`; anything after them is truncated.
    """

    def __init__(
        self, path: Path, num_samples: int, metadata: np.ndarray | None = None, payload_bytes: np.ndarray | None = None
    ) -> None:
        self.path, self.partial = path, partial_name(path)
        self.count = 0 if metadata is None else len(metadata)
        self._metadata, self._sizes = np.zeros(num_samples, SAMPLE), np.zeros(num_samples, np.uint64)
        self._position = METADATA_START + self._metadata.nbytes
        self._page_size = MIN_PAGE_BYTES
        if self.count:
            assert metadata is not None and payload_bytes is not None
            # Field by field, not whole rows: the padding between them must be 0 for the file to be reproducible.
            for name in ("image", "label"):
                self._metadata[name][: self.count] = metadata[name]
            self._sizes[: self.count] = payload_bytes
            self._position = end_of_payloads(metadata, payload_bytes)
            self._grow_pages(int(payload_bytes.max()))
        self._file = open(self.partial, "r+b" if self.count else "wb", buffering=1 << 20)  # noqa: SIM115
        self._file.truncate(self._position)
        self._file.seek(self._position)

    def add(self, sample: EncodedSample) -> None:
        payload, mode, height, width, label = sample
        size = len(payload)
        assert 0 < size <= MAX_PAYLOAD_BYTES and max(height, width) < 1 << 16 and self.count < len(self._sizes)
        self._grow_pages(size)
        # Would the payload cross a page boundary? Then pad with zeros and start at the next page.
        if self._position // self._page_size != (self._position + size - 1) // self._page_size:
            start = -(-self._position // self._page_size) * self._page_size
            self._file.write(bytes(start - self._position))
            self._position = start
        self._file.write(payload)
        self._metadata[self.count] = ((mode, width, height, self._position), label)
        self._sizes[self.count] = size
        self._position += size
        self.count += 1

    def written(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the metadata and payload sizes of the samples from `first` on."""
        return self._metadata[first : self.count].copy(), self._sizes[first : self.count].copy()

    def sync(self) -> None:
        """Flush the added samples to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the tables, flush, and rename the file to its final name."""
        allocations = np.zeros(self.count, ALLOCATION)
        allocations["sample_id"] = np.arange(self.count)
        allocations["ptr"] = self._metadata["image"]["data_ptr"][: self.count]
        allocations["size"] = self._sizes[: self.count]
        self._file.write(allocations.tobytes())
        fields = np.zeros(2, FIELD)
        for field, type_id, name in zip(fields, (IMAGE_FIELD, INT_FIELD), (b"image", b"label"), strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        header = np.array((VERSION, 2, self._page_size, self.count, self._position), HEADER)
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._metadata[: self.count].tobytes())
        self.sync()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)  # else a power failure could undo the rename

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(self.partial)  # the error of a full disk names no file
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk; samples were synced
            self._file.close()

    def _grow_pages(self, size: int) -> None:
        # Doubling merges whole pages, so a payload written before still does not cross a page boundary.
        while size > self._page_size:
            self._page_size *= 2


def end_of_payloads(metadata: np.ndarray, payload_bytes: np.ndarray) -> int:
    """Offset of the first byte after the last sample's payload."""
    return int(metadata["image"]["data_ptr"][-1]) + int(payload_bytes[-1])


def tables_sha256(metadata: np.ndarray, payload_bytes: np.ndarray) -> str:
    """SHA-256 (hexadecimal) of the tables: identifies the file without reading the images."""
    image = metadata["image"]
    columns = (*(image[name] for name in IMAGE.names or ()), metadata["label"], payload_bytes)
    digest = hashlib.sha256()
    for column in columns:
        for start in range(0, len(column), TABLE_BLOCK):
            digest.update(column[start : start + TABLE_BLOCK].astype("<u8").tobytes())
    return digest.hexdigest()


class Beton:
    """A memory-mapped .beton file, written by BetonWriter or by ffcv with one image field and one integer field.

    Raises UserError if the file is missing, truncated or of another kind.
    """

    num_samples: int
    page_size: int  # bytes
    image_field: str  # the field's name in the file: "image" from BetonWriter, anything from ffcv
    label_field: str
    modes: np.ndarray  # uint8 [N], JPEG | RAW
    heights: np.ndarray  # uint16 [N], pixels as stored
    widths: np.ndarray  # uint16 [N]
    sizes: np.ndarray  # uint16 [N, 2], height and width
    labels: np.ndarray  # int64 [N]
    pointers: np.ndarray  # uint64 [N], offset of a payload in `data`
    payload_bytes: np.ndarray  # uint64 [N]
    tables_sha256: str  # of positions, sizes and labels of the samples
    data: np.ndarray  # uint8 [bytes of the file], memory-mapped, read-only

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: there is no such file; prepare the data again (prepare.py)")
        if self.path.stat().st_size < METADATA_START:
            raise UserError(f"{path}: too short for a .beton file; prepare the data again (prepare.py)")
        self.data = np.memmap(self.path, np.uint8, mode="r")
        watch(self.data, self.path, remedy="delete the prepared folder and prepare again (prepare.py)")
        header = self.data[: HEADER.itemsize].view(HEADER)[0]
        fields = self.data[HEADER.itemsize : METADATA_START].view(FIELD)
        if header["version"] != VERSION or header["num_fields"] != 2:
            raise UserError(f"{path}: not a .beton file of version {VERSION} with two fields; prepare.py writes one")
        kinds = tuple(fields["type_id"].tolist())
        if kinds not in SAMPLES:
            raise UserError(f"{path}: its fields are not an image and an integer label; prepare.py writes such a file")
        names = {
            kind: name.tobytes().split(b"\0")[0].decode("ascii", "replace")
            for kind, name in zip(kinds, fields["name"], strict=True)
        }
        self.image_field, self.label_field = names[IMAGE_FIELD], names[INT_FIELD]
        self.num_samples = int(header["num_samples"])
        self.page_size = int(header["page_size"])
        self._read_tables(int(header["alloc_table_ptr"]), SAMPLES[kinds])

    def payload(self, index: int) -> np.ndarray:
        """The stored bytes of one sample, uint8 [bytes], a view of the mapped file."""
        start = int(self.pointers[index])
        return self.data[start : start + int(self.payload_bytes[index])]

    def image_file(self, index: int) -> bytes:
        """One sample as an image file: the stored JPEG, or a PPM of the raw pixels."""
        payload = self.payload(index).tobytes()
        if self.modes[index] == JPEG:
            return payload
        return b"P6\n%d %d\n255\n" % (self.widths[index], self.heights[index]) + payload

    def _read_tables(self, table_start: int, row: np.dtype) -> None:
        metadata_end = METADATA_START + self.num_samples * row.itemsize
        table_end = table_start + self.num_samples * ALLOCATION.itemsize
        if metadata_end > table_start or table_end != self.data.size:
            raise UserError(
                f"{self.path}: has {self.data.size} bytes, but its header implies {table_end}: truncated or damaged;"
                " delete the prepared folder and prepare again (prepare.py)"
            )
        # Views of the mapped file: ImageNet's tables take 60 MB, which all processes of a machine share.
        metadata = np.asarray(self.data[METADATA_START:metadata_end]).view(row)
        self.modes = metadata["image"]["mode"]
        self.heights = metadata["image"]["height"]
        self.widths = metadata["image"]["width"]
        self.sizes = metadata.view(_width_and_height(row))["both"][:, ::-1]
        self.pointers = metadata["image"]["data_ptr"]
        self.labels = metadata["label"]
        allocations = np.asarray(self.data[table_start:]).view(ALLOCATION)
        self.tables_sha256 = tables_sha256(metadata, allocations["size"])
        if np.array_equal(allocations["sample_id"], np.arange(self.num_samples)):
            self.payload_bytes = allocations["size"]
        else:  # ffcv writes allocations in the order in which its workers finished
            self.payload_bytes = np.zeros(self.num_samples, np.uint64)
            if int(allocations["sample_id"].max()) < self.num_samples:
                self.payload_bytes[allocations["sample_id"]] = allocations["size"]
        # Check every row once, vectorized: the C decoder trusts these numbers.
        for start in range(0, self.num_samples, TABLE_BLOCK):
            sound = self._are_sound(slice(start, start + TABLE_BLOCK), metadata_end, table_start)
            if not sound.all():
                raise UserError(
                    f"{self.path}: the table entry of sample {start + int(np.argmin(sound))} is invalid: damaged;"
                    " delete the prepared folder and prepare again (prepare.py)"
                )

    def _are_sound(self, rows: slice, metadata_end: int, table_start: int) -> np.ndarray:
        """bool [number of rows]: whether a payload lies between the two tables and has the size of its mode."""
        modes, pointers, payload_bytes = self.modes[rows], self.pointers[rows], self.payload_bytes[rows]
        ends = pointers + payload_bytes
        raw_bytes = 3 * self.heights[rows].astype(np.uint64) * self.widths[rows]
        return (
            (modes <= RAW)
            & (payload_bytes > 0)
            & (pointers >= metadata_end)
            & (ends <= table_start)
            & (ends >= pointers)  # the sum did not wrap around
            & ((modes == JPEG) | (payload_bytes == raw_bytes))
        )


def _width_and_height(row: np.dtype) -> np.dtype:
    """The dtype of a metadata row whose field "both" is width and height, which are adjacent, uint16 [2]."""
    offset = row.fields["image"][1] + IMAGE.fields["width"][1]  # type: ignore[index]
    return np.dtype({"names": ["both"], "formats": [("<u2", 2)], "offsets": [offset], "itemsize": row.itemsize})

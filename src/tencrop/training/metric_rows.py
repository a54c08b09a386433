"""Append, verify and read the rows of metrics.jsonl, each of which has a digest of all rows so far.

The digests form a hash chain: a row's digest covers its own text and the digest of the row before it, so that a changed
digit, or a row that was dropped, added or moved, is detected at the next row. Rows written by earlier code have no
digest; they are still read, and the digests of later rows cover them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, TextIO

from tencrop.config import UserError
from tencrop.config.documents import NUMBER, Between, parse_json
from tencrop.files import atomic_write, name_oserror, sync_folder

# Ranges and choices of each key; "?" marks keys that some rows lack. A validation loss may be infinite although no
# training loss was, so `loss` takes any number.
SHAPE = {
    "epoch": Between(0.0, 1e9),
    "split": {"train", "val", "minival"},
    "step?": Between(0, 2**53),
    "loss?": NUMBER,
    "top1_error?": Between(0.0, 1.0),
    "top5_error?": Between(0.0, 1.0),
    "num_images?": Between(1, 2**53),
    "lr?": float,
    "images_per_s?": float,
    "labels?": {"own", "heavier"},
    "weights?": {"raw", "ema"},
}
NO_ROWS = ""  # the digest before the first row
_REMEDY = "restore it from a copy, or delete it: the run then continues, and is reported, without these rows"
_DIGEST = re.compile(r'(.*), "row_digest": "([0-9a-f]{16})"\}')  # 64 bits, at the end of a row's text


def append_row(file: TextIO, row: dict[str, Any], before: str) -> str:
    """Append a row to metrics.jsonl and return its digest; `before` is the digest of the rows before it.

    From here on the row survives a kill of the process, but a power cut only after the next `sync_rows`. An fsync for
    each row would make a training step wait for the disk. The caller keeps the file open, because closing a file on NFS
    waits for the server as well.
    """
    text = json.dumps(row)
    digest = _digest(before, text)
    with name_oserror(Path(file.name)):
        # The digest goes inside the JSON object, so that any JSON-lines reader can read the file.
        file.write(f'{text[:-1]}, "row_digest": "{digest}"}}\n')
        file.flush()
    return digest


def sync_rows(file: TextIO) -> None:
    """Sync the rows and the file's name to disk. Raises OSError, also for an earlier write that failed only now."""
    path = Path(file.name)
    with name_oserror(path):
        os.fsync(file.fileno())
        sync_folder(path.parent)  # the directory entry of a new file is not part of its own fsync


def read_rows(path: Path, *, expected: str | None = None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without their digests; an empty list if there is no file.

    Skips a last line that a kill cut short. `expected` is the digest of all rows, if known: without it, missing last
    rows cannot be detected. Raises UserError if a row is broken, or the rows are not those that were written.
    """
    if not path.exists():
        return []
    rows, digest = _checked(path, *_lines(path))
    if expected is not None and expected != digest:
        raise UserError(f"{path}: its last rows are missing, or it is another run's; {_REMEDY}")
    return rows


def keep_rows(path: Path, num_rows: int, expected: str | None = None) -> tuple[int, str]:
    """Truncate metrics.jsonl to its first `num_rows` rows, because a resumed run will write the later ones again.

    Returns the number of rows left, 0 if there is no file, and their digest. Raises UserError if they are not the rows
    that were written, by the digest `expected` if it is known.
    """
    if not path.exists():
        return 0, NO_ROWS
    lines, is_cut = _lines(path)
    rows, digest = _checked(path, lines[:num_rows], is_cut and len(lines) <= num_rows)
    if len(rows) < num_rows or expected not in (None, digest):
        raise UserError(f"{path}: not the {num_rows} rows that the run wrote before its checkpoint; {_REMEDY}")
    atomic_write(path, b"".join(line + b"\n" for line in lines[:num_rows]))
    return num_rows, digest


def last_digest(path: Path) -> str | None:
    """The digest in the last row of metrics.jsonl, which covers all rows; None without a file or a whole last row."""
    lines, is_cut = _lines(path) if path.exists() else ([], False)
    found = _DIGEST.fullmatch(lines[-1].decode(errors="replace")) if lines and not is_cut else None
    return found[2] if found else None


def _lines(path: Path) -> tuple[list[bytes], bool]:
    """The lines of a file, and whether the last one lacks its newline."""
    if not path.is_file():  # reading a named pipe would block forever
        raise UserError(f"{path}: is not a file; {_REMEDY}")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}); {_REMEDY}") from error
    return (lines, True) if lines[-1] else (lines[:-1], False)


def _checked(path: Path, lines: list[bytes], is_cut: bool) -> tuple[list[dict[str, Any]], str]:
    """Parse and verify the lines of metrics.jsonl; returns the rows and the digest of all of them."""
    rows, digest, is_chained = [], NO_ROWS, False
    for number, line in enumerate(lines):
        location = f"{path}: row {number + 1}"
        try:
            row = parse_json(line, SHAPE)
            text, found = _text_and_digest(line.decode())
        except ValueError as error:
            # A kill can cut the last line only; a broken line before it is damage.
            if is_cut and number == len(lines) - 1:
                break
            raise UserError(f"{location} is broken ({error}); {_REMEDY}") from error
        digest = _digest(digest, text)
        # A row without a digest is fine at the start (earlier code), but not after a row that has one.
        if found not in (digest, None) or (found is None and is_chained):
            raise UserError(f"{location} is not what was written, or the row before it is missing; {_REMEDY}")
        is_chained = is_chained or found is not None
        row.pop("row_digest", None)
        rows.append(row)
    return rows, digest


def _text_and_digest(line: str) -> tuple[str, str | None]:
    # The digest covers the text as written, so it is cut out of the text: parsing and dumping may change numbers.
    found = _DIGEST.fullmatch(line)
    return (found[1] + "}", found[2]) if found else (line, None)


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:16]

"""The rows of metrics.jsonl, each with a digest of all rows so far. Written by Metrics, read by the report.

A row's digest is of its text and the digest of the row before: a changed digit, a row that was dropped, added or moved
is found at the next row. Rows of earlier code carry none; they are read, and the digests of later rows cover them.
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

# A validation's loss may be infinite where no training loss was.
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
_MEND = "bring it back from a copy, or delete it: the run then goes on, and is reported, without these rows"
_DIGEST = re.compile(r'(.*), "row_digest": "([0-9a-f]{16})"\}')  # at the end of a row's text


def append_row(file: TextIO, row: dict[str, Any], before: str) -> str:
    """Write a row at the end of metrics.jsonl; `before` is the digest of the rows before it. Returns its own.

    The row survives a kill of the process from here on, and a power cut from the next `sync_rows` on: a step would wait
    for each fsync. The caller keeps the file open, as closing one on NFS waits for its server, too.
    """
    text = json.dumps(row)
    digest = _digest(before, text)
    with name_oserror(Path(file.name)):
        file.write(f'{text[:-1]}, "row_digest": "{digest}"}}\n')
        file.flush()
    return digest


def sync_rows(file: TextIO) -> None:
    """Bring all rows to disk, and the file's name. Raises OSError where an earlier write has failed since."""
    path = Path(file.name)
    with name_oserror(path):
        os.fsync(file.fileno())
        sync_folder(path.parent)


def read_rows(path: Path, *, expected: str | None = None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without their digests; none without the file. A last line that a kill cut short is
    left out.

    `expected` is the digest of all rows where it is known. Raises UserError where a row is broken, or the rows are not
    those that were written.
    """
    if not path.exists():
        return []
    rows, digest = _checked(path, *_lines(path))
    if expected is not None and expected != digest:
        raise UserError(f"{path}: its last rows are missing, or it is another run's; {_MEND}")
    return rows


def keep_rows(path: Path, num_rows: int, expected: str | None = None) -> tuple[int, str]:
    """Drop the rows of metrics.jsonl after the first `num_rows`: a resumed run will write those again.

    Returns the number of rows that are left, 0 where there is no file, and their digest. Raises UserError where they
    are not those that were written, by the digest `expected` where it is known.
    """
    if not path.exists():
        return 0, NO_ROWS
    lines, is_cut = _lines(path)
    rows, digest = _checked(path, lines[:num_rows], is_cut and len(lines) <= num_rows)
    if len(rows) < num_rows or expected not in (None, digest):
        raise UserError(f"{path}: not the {num_rows} rows that the run has written until its checkpoint; {_MEND}")
    atomic_write(path, b"".join(line + b"\n" for line in lines[:num_rows]))
    return num_rows, digest


def last_digest(path: Path) -> str | None:
    """The digest in the last row of metrics.jsonl, which covers all rows; None where there is none."""
    lines, is_cut = _lines(path) if path.exists() else ([], False)
    found = _DIGEST.fullmatch(lines[-1].decode(errors="replace")) if lines and not is_cut else None
    return found[2] if found else None


def _lines(path: Path) -> tuple[list[bytes], bool]:
    """The lines of a file, and whether the last of them has no end."""
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: is no file; {_MEND}")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({os.strerror(error.errno or 0)}); {_MEND}") from error
    return (lines, True) if lines[-1] else (lines[:-1], False)


def _checked(path: Path, lines: list[bytes], is_cut: bool) -> tuple[list[dict[str, Any]], str]:
    """The rows of these lines, and the digest of all of them."""
    rows, digest, is_chained = [], NO_ROWS, False
    for number, line in enumerate(lines):
        place = f"{path}: row {number + 1}"
        try:
            row = parse_json(line, SHAPE)
            text, found = _text_and_digest(line.decode())
        except ValueError as error:
            if is_cut and number == len(lines) - 1:
                break
            raise UserError(f"{place} is broken ({error}); {_MEND}") from error
        digest = _digest(digest, text)
        if found not in (digest, None) or (found is None and is_chained):
            raise UserError(f"{place} is not what was written, or the row before it is missing; {_MEND}")
        is_chained = is_chained or found is not None
        row.pop("row_digest", None)
        rows.append(row)
    return rows, digest


def _text_and_digest(line: str) -> tuple[str, str | None]:
    found = _DIGEST.fullmatch(line)
    return (found[1] + "}", found[2]) if found else (line, None)


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:16]

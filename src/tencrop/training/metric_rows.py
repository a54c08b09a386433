"""Append, verify and read the rows of metrics.jsonl. Each row carries a digest of all rows up to itself.

The digests form a hash chain: a row's digest covers its own text and the digest of the previous row. A changed digit,
or a row that was removed, added or moved, therefore makes a digest wrong. Rows written by earlier versions have no
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

# The allowed range or choices of each key; "?" marks keys that some rows lack. `loss` may be any number, because a
# validation loss can be infinite even if no training loss was.
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
    """Append a row to metrics.jsonl and return its digest; `before` is the digest of the previous row.

    The row then survives if the process is killed. It survives a power failure only after the next `sync_rows`: an
    fsync per row would make training steps wait for the disk. The caller keeps the file open, because closing a file on
    NFS would wait for the server.
    """
    text = json.dumps(row)
    digest = _digest(before, text)
    with name_oserror(Path(file.name)):
        # The digest is a key of the JSON object, so that any JSON Lines reader can read the file.
        file.write(f'{text[:-1]}, "row_digest": "{digest}"}}\n')
        file.flush()
    return digest


def sync_rows(file: TextIO) -> None:
    """Write the rows and the file's directory entry to disk. Raises OSError, also for an earlier write that failed."""
    path = Path(file.name)
    with name_oserror(path):
        os.fsync(file.fileno())
        sync_folder(path.parent)  # the directory entry of a new file is not part of its own fsync


def read_rows(path: Path, *, expected: str | None = None) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without their digests; an empty list if there is no file.

    An incomplete last line, from a killed process, is skipped. `expected` is the digest of all rows, if known; without
    it, rows missing at the end cannot be detected. Raises UserError if a row is malformed or a digest does not match.
    """
    if not path.exists():
        return []
    rows, digest = _verify_rows(path, *_lines(path))
    if expected is not None and expected != digest:
        raise UserError(f"{path}: its last rows are missing, or it is another run's; {_REMEDY}")
    return rows


def keep_rows(path: Path, num_rows: int, expected: str | None = None) -> tuple[int, str]:
    """Truncate metrics.jsonl to its first `num_rows` rows, because a resumed run will write the later ones again.

    Returns the number of rows kept (0 if there is no file) and their digest. Raises UserError if there are fewer rows,
    or if they do not match their digests or, if given, the digest `expected`.
    """
    if not path.exists():
        return 0, NO_ROWS
    lines, is_cut = _lines(path)
    rows, digest = _verify_rows(path, lines[:num_rows], is_cut and len(lines) <= num_rows)
    if len(rows) < num_rows or expected not in (None, digest):
        raise UserError(f"{path}: not the {num_rows} rows that the run wrote before its checkpoint; {_REMEDY}")
    atomic_write(path, b"".join(line + b"\n" for line in lines[:num_rows]))
    return num_rows, digest


def last_digest(path: Path) -> str | None:
    """The digest in the last row of metrics.jsonl, which covers all rows; None if there is no such digest."""
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


def _verify_rows(path: Path, lines: list[bytes], is_cut: bool) -> tuple[list[dict[str, Any]], str]:
    """Parse and verify the lines of metrics.jsonl; returns the rows and the digest of all of them."""
    rows, digest, is_chained = [], NO_ROWS, False
    for number, line in enumerate(lines):
        location = f"{path}: row {number + 1}"
        try:
            row = parse_json(line, SHAPE)
            text, found = _text_and_digest(line.decode())
        except ValueError as error:
            # A killed process leaves at most the last line incomplete; any other malformed line is damage.
            if is_cut and number == len(lines) - 1:
                break
            raise UserError(f"{location} is broken ({error}); {_REMEDY}") from error
        digest = _digest(digest, text)
        # Rows without a digest (from earlier versions) are allowed only before the first row that has one.
        if found not in (digest, None) or (found is None and is_chained):
            raise UserError(f"{location} is not what was written, or the row before it is missing; {_REMEDY}")
        is_chained = is_chained or found is not None
        row.pop("row_digest", None)
        rows.append(row)
    return rows, digest


def _text_and_digest(line: str) -> tuple[str, str | None]:
    # The digest covers the text as written. Parsing and dumping a row again could change its numbers, so cut the text.
    found = _DIGEST.fullmatch(line)
    return (found[1] + "}", found[2]) if found else (line, None)


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:16]

"""What a figure shows, in words, as JSON beside it. Written by drawing.py, read by the report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tencrop.config.documents import read_json
from tencrop.files import atomic_write

FORMAT = "tencrop figure 1"
SHAPE = {
    "format": {FORMAT},
    "title": str,
    "caption": str,
    "model": str,
    "weights_sha256?": (str, None),
    "command?": str,
    "svg_sha256?": (str, None),
}


@dataclass(frozen=True)
class Record:
    """Of a figure NAME.svg, in NAME.json."""

    title: str
    caption: str
    model: str
    weights_sha256: str | None = None  # None: of no trained weights
    command: str = ""  # that drew it
    svg_sha256: str | None = None  # of the bytes of NAME.svg; earlier records have none


def save_record(path: Path, record: Record) -> None:
    """Write it whole or not at all."""
    atomic_write(path, (json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n").encode())


def load_record(path: Path) -> Record:
    """Raises UserError where the file is broken or of another version."""
    what, mend = (
        f"a record of a figure of this version ({FORMAT})",
        "draw it again with python -m tencrop.visualization",
    )
    facts = read_json(path, SHAPE, what=what, mend=mend)
    return Record(**{field.name: facts[field.name] for field in fields(Record) if field.name in facts})

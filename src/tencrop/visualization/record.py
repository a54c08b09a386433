"""JSON record beside each figure: title, caption, model, weights, command. drawing.py writes it, report/ reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tencrop.config.documents import read_json
from tencrop.files import atomic_write

FORMAT = "tencrop figure 1"  # the number increases when new code can no longer read old records
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
    """Contents of NAME.json, which describes the figure NAME.svg."""

    title: str
    caption: str
    model: str
    weights_sha256: str | None = None  # None: the figure shows no trained weights
    command: str = ""  # the command that drew the figure
    svg_sha256: str | None = None  # of the bytes of NAME.svg; None in records of earlier versions


def save_record(path: Path, record: Record) -> None:
    """Write the record atomically."""
    atomic_write(path, (json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n").encode())


def load_record(path: Path) -> Record:
    """Read a record; raises UserError if the file is broken or of another version."""
    what, remedy = (
        f"a record of a figure of this version ({FORMAT})",
        "draw it again with python -m tencrop.visualization",
    )
    facts = read_json(path, SHAPE, what=what, remedy=remedy)
    return Record(**{field.name: facts[field.name] for field in fields(Record) if field.name in facts})

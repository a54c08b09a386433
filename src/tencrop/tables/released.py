"""Released weights as evaluate.py table=calibration knows them: recognized by file name, judged by published errors.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tencrop.cli.choices import CONF
from tencrop.config.documents import read_yaml
from tencrop.tables.schema import ErrorRow, ErrorTable, RowProtocol

TABLE = "calibration"
SUFFIXES = (".pth", ".safetensors", ".pt", ".bin")
TOLERANCE = 0.1  # points: the same weights on the same images; decoders and float32 sums move a few images in 50,000
CONFIRMED, DIFFERS = "data confirmed", "differs"
_SHAPE = [{"row": (str, None), "model": str, "tag?": str, "kwargs?": {str: (bool, int, float, str)}, "file?": str}]


class Released(NamedTuple):
    """A published file of weights, and the row with its published error."""

    row: ErrorRow | None  # None: no published error is known here
    model: str  # model.name
    tag: str | None  # of timm's pretrained_cfg
    kwargs: dict[str, Any]
    stems: frozenset[str]  # names of the file without suffix

    def overrides(self) -> list[str]:
        """The overrides of evaluate.py that choose network and protocol; without a row, the publisher's protocol."""
        kwargs = self.kwargs | ({} if self.tag is None else {"pretrained_cfg": self.tag})
        values = [f"+model.kwargs.{key}={_written(value)}" for key, value in kwargs.items()]
        protocol = [] if self.row is None else protocol_overrides(self.row.protocol)
        return ["model=timm", f"model.name={self.model}", *values, *(protocol or ["protocol=center"])]


def _written(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def released_weights(table: ErrorTable, path: Path = CONF / "released_weights.yaml") -> list[Released]:
    """The files of conf/released_weights.yaml, with their rows of `table`."""
    rows = {row.id: row for row in table.rows}
    found = []
    for entry in read_yaml(path, _SHAPE, what="a list of released weights", remedy="correct it"):
        tag, model = entry.get("tag"), entry["model"]
        stems = [entry.get("file"), f"{model}.{tag}" if tag else None]
        row = None if entry["row"] is None else rows[entry["row"]]
        names = frozenset(stem for stem in stems if stem is not None)
        found.append(Released(row, model, tag, entry.get("kwargs", {}), names))
    return found


def recognized(folder: Path, known: Sequence[Released]) -> tuple[list[tuple[Path, Released]], list[Path]]:
    """The files of a folder with what each is (one file may have two rows), and its other files of weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    matched = [(path, one) for path in files for one in known if path.stem in one.stems]
    return matched, [path for path in files if path not in {path for path, _ in matched}]


def protocol_overrides(protocol: RowProtocol | None) -> list[str]:
    """The overrides for the stated part of a protocol; what is not stated comes from the weights' publisher."""
    if protocol is None or protocol.name is None:
        return []
    values = {key: getattr(protocol, key) for key in ("side", "size", "region", "resize", "filter")}
    return [
        f"protocol={protocol.name}",
        *(f"protocol.{key}={value}" for key, value in values.items() if value is not None),
    ]


def differences(table: ErrorTable, row: ErrorRow, errors: dict[str, float]) -> dict[str, float]:
    """Our errors minus the published ones, in points, for the columns that the row prints; errors: percent."""
    return {column: errors[column] - table.error(row, column) for column in table.columns if row.printed[column]}


def lies_within(table: ErrorTable, row: ErrorRow, errors: dict[str, float]) -> bool:
    """Whether every error is within TOLERANCE of the published one."""
    # 1e-9: 69.758 + 0.1 and its kind are no exact floats
    return all(abs(one) <= TOLERANCE + 1e-9 for one in differences(table, row, errors).values())

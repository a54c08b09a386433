"""Reads and checks conf/errors, one YAML file per printed table.

A mistake in a file is a UserError with file and row. In a row, `protocol` gives only the settings that differ from the
table's. `experiment`, `overrides` or both tell how to train it, `members` lists the rows of an ensemble, and `cannot`
gives the reason why neither is possible; a row with none of these inherits `cannot` from its table.
Does not import torch, so that mistakes are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from tencrop.cli.choices import CONF, groups, options_of
from tencrop.cli.errors import nearest
from tencrop.config import Config, UserError
from tencrop.config.documents import Between, Document, NotEmpty, check_shape, read_yaml
from tencrop.config.fields import dotted_keys
from tencrop.config.schema import MAX_SIDE, Filter, ProtocolName
from tencrop.config.yaml_files import yaml_files
from tencrop.tables.schema import (
    COLUMNS,
    CONFIDENCES,
    ErrorRow,
    ErrorTable,
    Member,
    RowProtocol,
    parse_printed,
)

ERRORS = CONF / "errors"
FOREIGN_DATA = ("ilsvrc2010", "imagenet_fall2009", "mnist")  # data sets of printed tables that no data= can read
PROTOCOLS = {*get_args(ProtocolName), "grid_crop"}
ID = re.compile(r"[a-z0-9_]+")

_SIDE = Between(1, MAX_SIDE)
_PROTOCOL = {
    "name": (PROTOCOLS, None),
    "side": (_SIDE, NotEmpty(_SIDE), None),
    "size": (_SIDE, None),
    "region": ({"whole", "square"}, None),
    "resize": ({"shorter_side", "warp", "central_fraction"}, None),
    "filter": (set(get_args(Filter)), None),
    "average": ({"softmax", "logits"}, None),
}
# A row's protocol: every key is optional. A table's must give all of them, so that nothing is left open by accident.
_DELTA = {f"{key}?": shape for key, shape in _PROTOCOL.items()}
_NUM_RUNS = Between(1, 1000)
_CONFIDENCE = (set(CONFIDENCES), {str: set(CONFIDENCES)})
# Keys with "?" are optional; num_runs, confidence, cannot and protocol of a table are defaults for its rows.
_TABLE = {
    "title": str,
    "source": str,
    "data": str,
    "split": {"val", "test"},
    "unit": {"error", "accuracy"},
    "columns": NotEmpty(set(COLUMNS)),
    "confidence": _CONFIDENCE,
    "num_images?": (Between(1, 10**9), None),
    "num_runs?": _NUM_RUNS,
    "note?": (str, None),
    "cannot?": (str, None),
    "protocol": object,
    "rows": NotEmpty({"id": str, str: object}),
}
_ROW = {
    "id": str,
    "row": str,
    "confidence?": _CONFIDENCE,
    "experiment?": (str, None),
    "overrides?": [str],
    "cannot?": (str, None),
    "protocol?": object,
    "members?": NotEmpty({"row": str, "seeds?": Between(1, 100), "protocol?": object}),
    "delta_of?": str,
    "num_runs?": _NUM_RUNS,
}
_MEMBER_KEYS = {"row", "seeds", "protocol"}


def table_names(folder: Path = ERRORS) -> list[str]:
    """The names of all tables, in natural order (table2 before table10)."""
    if folder == ERRORS:
        return options_of("errors")
    return [path.stem for path in yaml_files(folder)]


def read_table(name: str, folder: Path = ERRORS) -> ErrorTable:
    """Read one table. Raises UserError if there is none of this name, or for the first mistake in it."""
    return _Reader(folder).table(name)


def read_tables(folder: Path = ERRORS) -> list[ErrorTable]:
    """Read all tables."""
    reader = _Reader(folder)
    return [reader.table(name) for name in table_names(folder)]


def read_rows(references: Iterable[str], folder: Path = ERRORS) -> list[tuple[ErrorTable, ErrorRow]]:
    """The rows named by references TABLE.ID, with their tables. Raises UserError for an unknown row."""
    reader = _Reader(folder)
    tables: dict[str, ErrorTable] = {}
    found = []
    for reference in references:
        name, row_id, _ = reader.found("", "", reference)
        if name not in tables:
            tables[name] = reader.table(name)
        table = tables[name]
        found.append((table, next(row for row in table.rows if row.id == row_id)))
    return found


class _Reader:
    """Reads the files of a folder, each once: ensemble members and differences refer to rows of other tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = table_names(folder)
        self.files: dict[str, Document] = {}

    def table(self, name: str) -> ErrorTable:
        content = self.file(name)
        return ErrorTable(
            name=name,
            columns=tuple(content["columns"]),
            num_images=content.get("num_images"),
            note=content.get("note"),
            rows=tuple(self.row(name, row) for row in content["rows"]),
            **{key: content[key] for key in ("title", "source", "data", "split", "unit")},
        )

    def file(self, name: str) -> Document:
        """The content of a file, after checking its shape and each of its rows."""
        if name not in self.names:
            near = nearest(name, self.names) or "; table=? lists the tables"
            raise UserError(f"table={name}: there is no {self.folder.parent.name}/{self.folder.name}/{name}.yaml{near}")
        if name not in self.files:
            path = self.folder / f"{name}.yaml"
            content = read_yaml(path, _TABLE, what="an error table", remedy="correct it")
            _check_table(path, content)
            ids = [row["id"] for row in content["rows"]]
            for row in content["rows"]:
                where = f"{path}: row {row['id']}: "
                if ids.count(row["id"]) > 1:
                    raise UserError(f"{where}is not unique; give one of the rows another id")
                _check_row(where, row, content)
            self.files[name] = content
        return self.files[name]

    def row(self, table: str, row: Document) -> ErrorRow:
        content, where = self.file(table), f"{self.folder / table}.yaml: row {row['id']}: "
        words, cannot = _words(row), _cannot(row, content)
        confidence: str | dict[str, str] = row["confidence"] if "confidence" in row else content["confidence"]
        by_column = confidence if isinstance(confidence, dict) else dict.fromkeys(content["columns"], confidence)
        protocol = None if "members" in row else _protocol(where, content["protocol"], row.get("protocol", {}))
        # None matches any value, so without a name the result of any test protocol would be compared with this row.
        if words is not None and (protocol is None or protocol.name is None):
            raise UserError(f"{where}needs a protocol with a name; write null for what else the paper does not state")
        return ErrorRow(
            id=row["id"],
            label=row["row"],
            printed={column: row[column] for column in content["columns"]},
            confidence=by_column,
            words=words,
            cannot=cannot,
            protocol=protocol,
            members=tuple(self.member(where, table, member) for member in row.get("members", [])),
            delta_of=".".join(self.found(where, table, row["delta_of"])[:2]) if "delta_of" in row else None,
            num_runs=row["num_runs"] if "num_runs" in row else content.get("num_runs", 1),
        )

    def member(self, where: str, table: str, entry: Document) -> Member:
        name, row_id, row = self.found(where, table, entry["row"])
        if "members" in row:
            raise UserError(f"{where}members: {entry['row']} is an ensemble itself; list its members")
        its_table = self.file(name)
        # The ensemble's entry overrides the protocol of the single network, for example with its own scales.
        protocol = _protocol(where, its_table["protocol"], row.get("protocol", {}), entry.get("protocol", {}))
        return Member(name, row_id, entry.get("seeds", 1), protocol, _words(row), _cannot(row, its_table))

    def found(self, where: str, table: str, reference: str) -> tuple[str, str, Document]:
        """Table, id and content of the row named by `reference`: ID, or TABLE.ID for another table."""
        name, _, row_id = reference.rpartition(".")
        name = name or table
        if name not in self.names:
            raise UserError(f"{where}{reference}: there is no table {name}{nearest(name, self.names)}")
        for row in self.file(name)["rows"]:
            if row["id"] == row_id:
                return name, row_id, row
        ids = [row["id"] for row in self.file(name)["rows"]]
        raise UserError(f"{where}{reference}: there is no row {row_id} in {name}{nearest(row_id, ids)}")


def _words(row: Document) -> tuple[str, ...] | None:
    experiment = [f"experiment={row['experiment']}"] if row.get("experiment") else []
    return (*experiment, *row.get("overrides", [])) or None


def _cannot(row: Document, table: Document) -> str | None:
    if "cannot" in row or _words(row) or "members" in row:
        return row.get("cannot")
    return table.get("cannot")


def _protocol(where: str, *parts: Document | None) -> RowProtocol | None:
    """Merge the parts, where later ones override earlier ones; a part that is null discards all before it."""
    values: Document = {}
    for part in parts:
        values = {} if part is None else values | part
    if not values:
        return None
    if missing := [key for key in _PROTOCOL if key not in values]:
        raise UserError(f"{where}protocol.{missing[0]} is missing; write null where the paper does not state it")
    if isinstance(values["side"], list):
        values["side"] = tuple(values["side"])
    return RowProtocol(**values)


def _check_table(path: Path, table: Document) -> None:
    known = (*options_of("data"), *FOREIGN_DATA)
    if unknown := set(table) - {key.rstrip("?") for key in _TABLE}:
        raise UserError(f"{path}: {min(unknown)}: there is no such key; leave it out")
    if table["data"] not in known:
        raise UserError(f"{path}: data={table['data']}: must be one of {', '.join(known)}")
    if len(set(table["columns"])) != len(table["columns"]):
        raise UserError(f"{path}: columns: has a duplicate; name each column once")
    if isinstance(table["confidence"], dict) and set(table["confidence"]) != set(table["columns"]):
        raise UserError(f"{path}: confidence: must name each of the columns, or be one text for all")
    _check_protocol(f"{path}: ", table["protocol"], _PROTOCOL)


def _check_row(where: str, row: Document, table: Document) -> None:
    columns = table["columns"]
    for column in columns:
        if column not in row:
            raise UserError(f"{where}{column} is missing; write null where the paper prints nothing")
    known = {*(key.rstrip("?") for key in _ROW), *columns}
    if unknown := sorted(set(row) - known):
        raise UserError(f"{where}{unknown[0]}: is neither a key nor one of the table's columns; leave it out")
    try:
        # Printed numbers are quoted in YAML: 25.60 unquoted would become 25.6 and lose its last digit.
        check_shape(row, _ROW | dict.fromkeys(columns, (str, None)))
        printed = [parse_printed(row[column]) for column in columns if row[column] is not None]
    except ValueError as error:
        raise UserError(f"{where}{error}; correct it") from error
    if not ID.fullmatch(row["id"]):
        raise UserError(f"{where}an id may contain a-z, 0-9 and _ only; rename it")
    if "delta_of" not in row and not all(0 <= number.value <= 100 for number in printed):
        raise UserError(f"{where}a printed number is outside 0 to 100 percent; correct it, or give delta_of")
    _check_keys(where, row, columns)
    _check_origin(where, row, table)


def _check_keys(where: str, row: Document, columns: list[str]) -> None:
    confidence = row.get("confidence")
    if isinstance(confidence, dict) and set(confidence) != set(columns):
        raise UserError(f"{where}confidence: must name each of {', '.join(columns)}, or be one text for all")
    _check_protocol(where, row.get("protocol"), _DELTA)
    for member in row.get("members", []):
        if unknown := set(member) - _MEMBER_KEYS:
            raise UserError(f"{where}members: {min(unknown)}: there is no such key; leave it out")
        _check_protocol(f"{where}members: ", member.get("protocol", {}), _DELTA)
        if member.get("protocol", {}) is None:
            raise UserError(f"{where}members: protocol=null: leave it out, or give what differs from the row's own")


def _check_protocol(where: str, protocol: Document | None, shape: Document) -> None:
    if protocol is None:
        return
    try:
        check_shape(protocol, shape, "protocol")
    except ValueError as error:
        raise UserError(f"{where}{error}; write null for what the paper does not state") from error
    if unknown := set(protocol) - set(_PROTOCOL):
        raise UserError(f"{where}protocol.{min(unknown)}: there is no such key; leave it out")


def _check_origin(where: str, row: Document, table: Document) -> None:
    """Raise UserError unless a row has exactly one way to obtain its number, or the reason why there is none."""
    words, cannot, has_members = _words(row), _cannot(row, table), "members" in row
    if sum((words is not None, row.get("cannot") is not None, has_members)) > 1:
        raise UserError(f"{where}has two of experiment (or overrides), members and cannot; keep one")
    if words is None and cannot is None and not has_members:
        raise UserError(f"{where}names no experiment; give experiment, overrides or members, or the reason in cannot")
    if (words or has_members) and table["data"] in FOREIGN_DATA:
        raise UserError(f"{where}no data= reads {table['data']}; give this reason in cannot")
    if (experiment := row.get("experiment")) and experiment not in (names := options_of("experiment")):
        near = nearest(experiment, names)
        raise UserError(f"{where}experiment={experiment}: there is no conf/experiment/{experiment}.yaml{near}")
    for override in row.get("overrides", []):
        _check_override(where, override)


def _check_override(where: str, override: str) -> None:
    # Names only. Composing every row to check its values would take 0.3 s each.
    key, sign, value = override.lstrip("+").partition("=")
    if not sign:
        raise UserError(f"{where}overrides: {override}: cannot be read as KEY=VALUE")
    if key in groups():
        if value not in (names := options_of(key)):
            raise UserError(f"{where}overrides: {override}: there is no conf/{key}/{value}.yaml{nearest(value, names)}")
    elif not key.startswith("model.kwargs.") and key not in (keys := dotted_keys(Config)):
        raise UserError(f"{where}overrides: {override}: there is no such key{nearest(key, keys)}")

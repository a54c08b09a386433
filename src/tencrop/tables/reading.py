"""Reads and checks conf/errors, one YAML file per printed table.

A mistake in a file is a UserError with file and row. In a row, `protocol` gives only the settings that differ from the
table's. `experiment`, `overrides` or both tell how to train it, `members` lists the rows of an ensemble, and `cannot`
gives the reason why neither is possible; a row with none of these inherits `cannot` from its table. `init_from` names
the row (ID or TABLE.ID) from whose run the training starts, whatever the path of that run; training.init.only, head and
resize stand in the overrides. `model` names the network of a row for figures, unless its overrides do. `num_seeds` is
the number of our runs that a row asks for, by default the paper's `num_runs`. Does not import torch, so that mistakes
are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tencrop.cli.choices import CONF, options_of
from tencrop.cli.errors import nearest
from tencrop.config import UserError
from tencrop.config.yaml_files import yaml_files
from tencrop.tables.checks import PROTOCOL, cannot_of, model_of, overrides_of, read_checked
from tencrop.tables.schema import ErrorRow, ErrorTable, Member, RowProtocol, RowTraining

ERRORS = CONF / "errors"
ALL = "all"  # as a table's name: every table


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


def chosen_tables(name: str, folder: Path = ERRORS) -> list[ErrorTable]:
    """The table that table=NAME means: one, or with ALL every table."""
    return read_tables(folder) if name == ALL else [read_table(name, folder)]


def read_rows(references: Iterable[str], folder: Path = ERRORS) -> list[tuple[ErrorTable, ErrorRow]]:
    """The rows named by references TABLE.ID, with their tables. Raises UserError for an unknown row."""
    reader = _Reader(folder)
    tables: dict[str, ErrorTable] = {}
    found = []
    for reference in references:
        # No table of its own: a reference without TABLE. names none, and is refused.
        name, row_id, _ = reader.found("", "", reference)
        # A table is built once, however many of its rows are drawn in a figure.
        if name not in tables:
            tables[name] = reader.table(name)
        table = tables[name]
        found.append((table, next(row for row in table.rows if row.id == row_id)))
    return found


def with_bases(tables: Sequence[ErrorTable], folder: Path = ERRORS) -> list[ErrorTable]:
    """The tables, and of every other table the rows that differences in `tables` refer to."""
    names = {table.name for table in tables}
    # One level only: the base's own base is not needed for its error.
    bases = dict.fromkeys(row.delta_of for table in tables for row in table.rows if row.delta_of is not None)
    others: dict[str, ErrorTable] = {}
    for table, row in read_rows((base for base in bases if base.partition(".")[0] not in names), folder):
        rows = others[table.name].rows if table.name in others else ()
        # Only the base rows of another table: its other rows are neither matched nor printed.
        others[table.name] = replace(table, rows=(*rows, row))
    return [*tables, *others.values()]


class _Reader:
    """Reads the files of a folder, each once: ensemble members and differences refer to rows of other tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = table_names(folder)
        self.files: dict[str, dict[str, Any]] = {}

    def table(self, name: str) -> ErrorTable:
        content = self.file(name)
        return ErrorTable(
            name=name,
            columns=tuple(content["columns"]),
            num_images=content.get("num_images"),
            data_fingerprint=content.get("data_fingerprint"),
            note=content.get("note"),
            rows=tuple(self.row(name, row) for row in content["rows"]),
            **{key: content[key] for key in ("title", "source", "data", "split", "unit")},
        )

    def file(self, name: str) -> dict[str, Any]:
        """The content of a file, after checking its shape and each of its rows."""
        if name not in self.names:
            near = nearest(name, self.names) or "; table=? lists the tables"
            raise UserError(f"table={name}: there is no {self.folder.parent.name}/{self.folder.name}/{name}.yaml{near}")
        if name not in self.files:
            self.files[name] = read_checked(self.folder / f"{name}.yaml")
        return self.files[name]

    def row(self, table: str, row: dict[str, Any]) -> ErrorRow:
        content, where = self.file(table), f"{self.folder / table}.yaml: row {row['id']}: "
        training = self.training(where, table, row)
        confidence: Any = row.get("confidence", content.get("confidence"))
        # From here on always by column, whichever form the file uses.
        if not isinstance(confidence, dict):
            confidence = dict.fromkeys(content["columns"], confidence)
        protocol = None if "members" in row else _protocol(where, content["protocol"], row.get("protocol", {}))
        # None matches any value, so without a name the result of any test protocol would be compared with this row.
        if training is not None and (protocol is None or protocol.name is None):
            raise UserError(f"{where}needs a protocol with a name; write null for what else the paper does not state")
        # Both spellings of itself; longer cycles do no harm, since a base's own base is never read.
        if row.get("delta_of") in (row["id"], f"{table}.{row['id']}"):
            raise UserError(f"{where}delta_of: is the row itself; name its base row")
        # A paper that does not say how many runs it averages most likely reports one.
        num_runs = row.get("num_runs", content.get("num_runs", 1))
        return ErrorRow(
            id=row["id"],
            label=row["row"],
            printed={column: row[column] for column in content["columns"]},
            confidence={column: confidence[column] for column in content["columns"] if row[column] is not None},
            model=model_of(row),
            training=training,
            cannot=cannot_of(row, content),
            protocol=protocol,
            members=tuple(self.member(where, table, member) for member in row.get("members", [])),
            delta_of=".".join(self.found(where, table, row["delta_of"])[:2]) if "delta_of" in row else None,
            num_runs=num_runs,
            num_seeds=row.get("num_seeds", content.get("num_seeds", num_runs)),
        )

    def member(self, where: str, table: str, entry: dict[str, Any]) -> Member:
        name, row_id, row = self.found(where, table, entry["row"])
        # Averages of averages would weight the networks unequally.
        if "members" in row:
            raise UserError(f"{where}members: {entry['row']} is an ensemble itself; list its members")
        its_table = self.file(name)
        # The ensemble's entry overrides the protocol of the single network, for example with its own scales.
        protocol = _protocol(where, its_table["protocol"], row.get("protocol", {}), entry.get("protocol", {}))
        training = self.training(where, name, row)
        return Member(name, row_id, entry.get("seeds", 1), protocol, training, cannot_of(row, its_table))

    def training(self, where: str, table: str, row: dict[str, Any], after: Sequence[str] = ()) -> RowTraining | None:
        """The training of a row, and of the rows that it starts from; `after`: the rows that start from this one."""
        overrides = overrides_of(row)
        if overrides is None or "init_from" not in row:
            return None if overrides is None else RowTraining(overrides)
        if isinstance(row["init_from"], list):  # a training whose error the paper does not print, so it has no row
            return RowTraining(overrides, RowTraining(tuple(row["init_from"])), " ".join(row["init_from"]))
        name, row_id, source = self.found(f"{where}init_from: ", table, row["init_from"])
        rows = (*after, f"{table}.{row['id']}")
        if f"{name}.{row_id}" in rows:
            raise UserError(f"{where}init_from: leads back to {name}.{row_id}; the first run must start from the seed")
        init = self.training(where, name, source, rows)
        if init is None:
            raise UserError(f"{where}init_from: {row['init_from']} has no training of its own; name a row that has")
        return RowTraining(overrides, init, f"{name}.{row_id}")

    def found(self, where: str, table: str, reference: str) -> tuple[str, str, dict[str, Any]]:
        """Table, id and content of the row named by `reference`: ID, or TABLE.ID for another table."""
        # An id has no dot (checks.ID), so the last one separates it from the table.
        name, _, row_id = reference.rpartition(".")
        name = name or table
        if name not in self.names:
            raise UserError(f"{where}{reference}: there is no table {name}{nearest(name, self.names)}")
        for row in self.file(name)["rows"]:
            if row["id"] == row_id:
                return name, row_id, row
        ids = [row["id"] for row in self.file(name)["rows"]]
        raise UserError(f"{where}{reference}: there is no row {row_id} in {name}{nearest(row_id, ids)}")


def _protocol(where: str, *parts: dict[str, Any] | None) -> RowProtocol | None:
    """Merge the parts, where later ones override earlier ones; a part that is null discards all before it."""
    values: dict[str, Any] = {}
    for part in parts:
        values = {} if part is None else values | part
    if not values:
        return None
    # Checked after merging: a row that discards the table's protocol must state all of its own.
    if missing := [key for key in PROTOCOL if key not in values]:
        raise UserError(f"{where}protocol.{missing[0]} is missing; write null where the paper does not state it")
    # Hashable, as a frozen dataclass should be: table_plan counts members in dictionaries.
    if isinstance(values["side"], list):
        values["side"] = tuple(values["side"])
    return RowProtocol(**values)

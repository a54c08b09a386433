"""The checks of a file of conf/errors: its shape, and in every row the experiment, protocol and printed numbers.

Raises UserError with file and row for the first mistake. Called by reading.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from tencrop.cli.choices import groups, options_of
from tencrop.cli.errors import nearest
from tencrop.config import Config, UserError
from tencrop.config.documents import Between, NotEmpty, check_shape, read_yaml
from tencrop.config.fields import dotted_keys
from tencrop.config.schema import MAX_SIDE, Filter, ProtocolName
from tencrop.tables.schema import COLUMNS, CONFIDENCES, parse_printed

# Data sets of printed tables that no data= can read.
FOREIGN_DATA = ("ilsvrc2010", "imagenet_fall2009", "zip_codes")
ID = re.compile(r"[a-z0-9_]+")
SHA256 = re.compile(r"[0-9a-f]{64}")

_SIDE = Between(1, MAX_SIDE)
PROTOCOL = {
    "name": (set(get_args(ProtocolName)), None),
    "side": (_SIDE, NotEmpty(_SIDE), None),
    "size": (_SIDE, None),
    "region": ({"whole", "square"}, None),
    "resize": ({"shorter_side", "warp", "central_fraction"}, None),
    "filter": (set(get_args(Filter)), None),
    "average": ({"softmax", "logits"}, None),
}
# A row's protocol: every key is optional. A table's must give all of them, so that nothing is left open by accident.
_DELTA = {f"{key}?": shape for key, shape in PROTOCOL.items()}
_NUM_RUNS = Between(1, 1000)
_CONFIDENCE = (set(CONFIDENCES), {str: set(CONFIDENCES)})
# Keys with "?" are optional; num_runs, num_seeds, confidence, cannot and protocol of a table are defaults for its rows.
_TABLE = {
    "title": str,
    "source": str,
    "data": str,
    "split": {"val", "test"},
    "unit": {"error", "accuracy"},
    "columns": NotEmpty(set(COLUMNS)),
    "confidence?": _CONFIDENCE,
    "num_images?": (Between(1, 10**9), None),
    "data_fingerprint?": ({"train": str, "val": str}, None),
    "num_runs?": _NUM_RUNS,
    "num_seeds?": _NUM_RUNS,
    "note?": (str, None),
    "cannot?": (str, None),
    "protocol": object,
    "rows": NotEmpty({"id": str, str: object}),
}
_ROW = {
    "id": str,
    "row": str,
    "model?": (str, None),
    "confidence?": _CONFIDENCE,
    "experiment?": (str, None),
    "overrides?": [str],
    "init_from?": (str, NotEmpty(str)),
    "cannot?": (str, None),
    "protocol?": object,
    "members?": NotEmpty({"row": str, "seeds?": Between(1, 100), "protocol?": object}),
    "delta_of?": str,
    "num_runs?": _NUM_RUNS,
    "num_seeds?": _NUM_RUNS,
}
# check_shape allows keys that a shape does not list, as records of newer code have them. Here they are typing errors.
_MEMBER_KEYS = {"row", "seeds", "protocol"}


def read_checked(path: Path) -> dict[str, Any]:
    """The content of a file, after checking its shape and each of its rows."""
    content: dict[str, Any] = read_yaml(path, _TABLE, what="an error table", remedy="correct it")
    _check_table(path, content)
    ids = [row["id"] for row in content["rows"]]
    for row in content["rows"]:
        # The id and not a number: rows move when a table is completed, and their ids do not.
        where = f"{path}: row {row['id']}: "
        # Other tables and figures refer to a row by its id, so two rows of one id would be two answers.
        if ids.count(row["id"]) > 1:
            raise UserError(f"{where}is not unique; give one of the rows another id")
        _check_row(where, row, content)
    return content


def overrides_of(row: dict[str, Any]) -> tuple[str, ...] | None:
    experiment = [f"experiment={row['experiment']}"] if row.get("experiment") else []
    # The experiment comes first: overrides change what it has set.
    return (*experiment, *row.get("overrides", [])) or None


def model_of(row: dict[str, Any]) -> str | None:
    """The file of conf/model with a row's network; None if neither its keys nor its overrides tell.

    Like the overrides, an experiment may name it: experiment=vgg_d is the recipe of vgg_d.
    """
    named = [word.removeprefix("model=") for word in row.get("overrides", []) if word.startswith("model=")]
    if named or row.get("experiment") not in options_of("model"):
        return named[-1] if named else row.get("model")
    return row["experiment"]


def cannot_of(row: dict[str, Any], table: dict[str, Any]) -> str | None:
    # A row that says how to train its network is not covered by the reason that the table gives for the others.
    if "cannot" in row or overrides_of(row) or "members" in row:
        return row.get("cannot")
    return table.get("cannot")


def _check_table(path: Path, table: dict[str, Any]) -> None:
    known = (*options_of("data"), *FOREIGN_DATA)
    # Without this check a misspelled optional key, such as num_seed, would just be ignored.
    if unknown := set(table) - {key.rstrip("?") for key in _TABLE}:
        raise UserError(f"{path}: {min(unknown)}: there is no such key; leave it out")
    if table["data"] not in known:
        raise UserError(f"{path}: data={table['data']}: must be one of {', '.join(known)}")
    if len(set(table["columns"])) != len(table["columns"]):
        raise UserError(f"{path}: columns: has a duplicate; name each column once")
    confidence = table.get("confidence")
    if isinstance(confidence, dict) and set(confidence) != set(table["columns"]):
        raise UserError(f"{path}: confidence: must name each of the columns, or be one text for all")
    for split, digest in (table.get("data_fingerprint") or {}).items():
        if not SHA256.fullmatch(digest):
            raise UserError(
                f"{path}: data_fingerprint.{split}: must be the source_fingerprint of a manifest, 64 digits"
            )
    _check_protocol(f"{path}: ", table["protocol"], PROTOCOL)


def _check_row(where: str, row: dict[str, Any], table: dict[str, Any]) -> None:
    columns = table["columns"]
    for column in columns:
        # An omitted number and one that the paper does not print look alike; null states the second.
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
    # The reader of a table must know whether a number was read in the paper or copied by a third party.
    if printed and "confidence" not in row and "confidence" not in table:
        raise UserError(f"{where}confidence is missing; tell how the printed numbers reached us, in the row or table")
    # Catches a missing decimal point (253 for 25.3). Differences may have either sign.
    if "delta_of" not in row and not all(0 <= number.value <= 100 for number in printed):
        raise UserError(f"{where}a printed number is outside 0 to 100 percent; correct it, or give delta_of")
    _check_keys(where, row, columns)
    _check_origin(where, row, table)


def _check_keys(where: str, row: dict[str, Any], columns: list[str]) -> None:
    confidence = row.get("confidence")
    # All columns, also those without a number here: the mapping is then valid for every row that inherits it.
    if isinstance(confidence, dict) and set(confidence) != set(columns):
        raise UserError(f"{where}confidence: must name each of {', '.join(columns)}, or be one text for all")
    _check_protocol(where, row.get("protocol"), _DELTA)
    for member in row.get("members", []):
        if unknown := set(member) - _MEMBER_KEYS:
            raise UserError(f"{where}members: {min(unknown)}: there is no such key; leave it out")
        _check_protocol(f"{where}members: ", member.get("protocol", {}), _DELTA)
        # null discards the row's own protocol (reading.py), and then nothing would be left to compare a run with.
        if member.get("protocol", {}) is None:
            raise UserError(f"{where}members: protocol=null: leave it out, or give what differs from the row's own")


def _check_protocol(where: str, protocol: Any, shape: dict[str, Any]) -> None:
    if protocol is None:
        return
    try:
        check_shape(protocol, shape, "protocol")
    except ValueError as error:
        raise UserError(f"{where}{error}; write null for what the paper does not state") from error
    if unknown := set(protocol) - set(PROTOCOL):
        raise UserError(f"{where}protocol.{min(unknown)}: there is no such key; leave it out")


def _check_origin(where: str, row: dict[str, Any], table: dict[str, Any]) -> None:
    """Raise UserError unless a row has exactly one way to obtain its number, or the reason why there is none."""
    overrides, cannot, has_members = overrides_of(row), cannot_of(row, table), "members" in row
    # Two of them could disagree, and the reader of the table would not know which one its number follows.
    if sum((overrides is not None, row.get("cannot") is not None, has_members)) > 1:
        raise UserError(f"{where}has two of experiment (or overrides), members and cannot; keep one")
    if overrides is None and cannot is None and not has_members:
        raise UserError(f"{where}names no experiment; give experiment, overrides or members, or the reason in cannot")
    if (overrides or has_members) and table["data"] in FOREIGN_DATA:
        raise UserError(f"{where}no data= reads {table['data']}; give this reason in cannot")
    if (experiment := row.get("experiment")) and experiment not in (names := options_of("experiment")):
        near = nearest(experiment, names)
        raise UserError(f"{where}experiment={experiment}: there is no conf/experiment/{experiment}.yaml{near}")
    for override in row.get("overrides", []):
        _check_override(where, override)
    source = row.get("init_from", [])
    for override in source if isinstance(source, list) else []:
        _check_override(f"{where}init_from: ", override)
    if "init_from" in row and overrides is None:
        raise UserError(f"{where}init_from: the row has no training that could start from a run; leave it out")
    if (model := row.get("model")) is not None:
        if any(override.startswith("model=") for override in row.get("overrides", [])):
            raise UserError(f"{where}model: overrides name it already; leave one of them out")
        if model not in (names := options_of("model")):
            raise UserError(f"{where}model={model}: there is no conf/model/{model}.yaml{nearest(model, names)}")


def _check_override(where: str, override: str) -> None:
    # Names only: composing a row to check its values takes 0.04 s, and conf/errors has hundreds of rows.
    key, sign, value = override.lstrip("+").partition("=")
    if not sign:
        raise UserError(f"{where}overrides: {override}: cannot be read as KEY=VALUE")
    if key == "training.init.checkpoint":  # the same path may hold other weights on another machine
        raise UserError(f"{where}overrides: {override}: name the row whose run it starts from in init_from instead")
    if key in groups():
        if value not in (names := options_of(key)):
            raise UserError(f"{where}overrides: {override}: there is no conf/{key}/{value}.yaml{nearest(value, names)}")
    elif not key.startswith("model.kwargs.") and key not in (keys := dotted_keys(Config)):
        raise UserError(f"{where}overrides: {override}: there is no such key{nearest(key, keys)}")

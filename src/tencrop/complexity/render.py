"""A network's layers as a table: for the terminal, in Markdown, CSV and JSON. Called by __main__.py and golden.py."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from tencrop.complexity.count import Complexity
from tencrop.complexity.layers import UNSHOWN, Layer
from tencrop.text_tables import aligned
from tencrop.text_tables import csv_table as rows_as_csv
from tencrop.text_tables import markdown_table as rows_as_markdown

WIDTH = 100
NONE = "–"
COLUMNS = ("layer", "type", "output", "kernel", "stride", "padding", "groups", "parameters", "mult_adds", "units",
           "connections", "field", "jump", "start", "center")  # fmt: skip
NUMBERS = ("parameters", "mult_adds", "units", "connections")
TYPES = {"conv": "", "linear": "full", "max pool": "max", "avg pool": "mean", "product": "a @ b", "rbf": "distance"}
HEADS = ("layer", "output", "type", "groups", "params", "m-adds", "units", "conns", "field", "jump", "start")
NOTE = (
    "params: parameters; m-adds: multiply-adds (FLOPs are twice as many), biases not counted; units: outputs; conns:"
    " connections, biases counted. Field, jump, start: unit i sees the pixels from start + i jump on, field of them."
)
GATED = "*: and, by gates (squeeze-and-excitation) or statistics, the whole image."


def terminal_table(name: str, found: Complexity, *, all_layers: bool) -> str:
    """The layers in at most WIDTH columns, counts to four digits."""
    lines = [HEADS, *(_cells(layer) for layer in shown(found, all_layers)), _totals(found)]
    others = sum(max(len(line[column]) for line in lines) + 1 for column in range(1, len(HEADS)))
    most = WIDTH - others  # a layer's name is cut at its front: its end tells it from its neighbors
    cut = [(name if len(name) <= most else "…" + name[1 - most :], *cells) for name, *cells in lines]
    rows = aligned(cut, left=[0], gap=" ")
    notes = [*_left_out(found, all_layers), NOTE]
    if any(layer.field is not None and layer.field.is_gated for layer in found.layers):
        notes.append(GATED)
    title = f"{name}, {found.image_size} × {found.image_size} pixels"
    return "\n".join([title, *rows, *(textwrap.fill(note, WIDTH) for note in notes)]) + "\n"


def markdown_table(name: str, found: Complexity, *, all_layers: bool) -> str:
    """The layers with exact counts."""
    total = ["total"] + [""] * (len(COLUMNS) - 1)
    for column in NUMBERS:
        total[COLUMNS.index(column)] = f"{getattr(found, column):,}"
    rows = [[_exact(value) for value in record(layer).values()] for layer in shown(found, all_layers)]
    table = rows_as_markdown(COLUMNS, [*rows, total], left=[COLUMNS.index("layer"), COLUMNS.index("type")])
    notes = "".join(f"\n{note}" for note in _left_out(found, all_layers))
    return f"{name}, {found.image_size} × {found.image_size} pixels\n\n{table}{notes}"


def csv_table(found: Complexity, *, all_layers: bool) -> str:
    """A line a layer, exact, without totals."""
    return rows_as_csv(COLUMNS, (list(record(layer).values()) for layer in shown(found, all_layers)))


def json_text(name: str, found: Complexity, *, all_layers: bool) -> str:
    """Totals and layers, exact."""
    layers = [record(layer) for layer in shown(found, all_layers)]
    return json.dumps({"model": name, **totals(found), "layers": layers}, indent=1, ensure_ascii=False) + "\n"


def totals(found: Complexity) -> dict[str, int]:
    """All counts of a network."""
    return {
        "image_size": found.image_size,
        "parameters": found.parameters,
        "training_parameters": found.training_parameters,
        "mult_adds": found.mult_adds,
        "units": found.units,
        "connections": found.connections,
    }


def shown(found: Complexity, all_layers: bool) -> list[Layer]:
    return [layer for layer in found.layers if all_layers or layer.kind not in UNSHOWN]


def record(layer: Layer) -> dict[str, Any]:
    """A layer's values for COLUMNS; None where it has none."""
    windows = layer.field.windows if layer.field is not None else {}
    # height and width, one number where they agree
    field, jump, start, center = (
        agreed([getattr(window, name) for window in windows.values()]) for name in ("size", "jump", "start", "center")
    )
    gated = "*" if layer.field is not None and layer.field.is_gated else ""
    values = (layer.name, layer.kind, layer.size or None, _by(layer.kernel), agreed(layer.stride),
              agreed(layer.padding), layer.groups, layer.parameters, layer.mult_adds, layer.units, layer.connections,
              f"{field}{gated}" if field else None, jump if jump != "0" else None, start, center)  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def short(number: int) -> str:
    """Four digits: 105.4M; exact below 100,000."""
    if number < 100_000:
        return f"{number:,}"
    unit, letter = next((u, letter) for u, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")) if number >= u)
    return f"{number / unit:#.4g}".rstrip(".") + letter


def _cells(layer: Layer) -> tuple[str, ...]:
    values = record(layer)
    kernel = f"{values['kernel']}/{values['stride']}" if values["kernel"] else ""
    kind = f"{TYPES.get(layer.kind, layer.kind)} {kernel}".strip()
    numbers = [short(values[name]) if values[name] else NONE for name in NUMBERS]
    places = [values[name] or NONE for name in ("field", "jump", "start")]
    return (
        layer.name,
        values["output"] or NONE,
        kind,
        str(layer.groups) if layer.groups > 1 else "",
        *numbers,
        *places,
    )


def _totals(found: Complexity) -> tuple[str, ...]:
    return ("total", "", "", "", *(short(getattr(found, name)) for name in NUMBERS), "", "", "")


def _left_out(found: Complexity, all_layers: bool) -> list[str]:
    notes = []
    for kind, words in (("norm", "normalization"), ("other", "embeddings, scales and the like")):
        parameters = sum(layer.parameters for layer in found.layers if layer.kind == kind)
        if parameters and not all_layers:
            notes.append(f"Of the parameters {parameters:,} belong to {words} (layers=all shows them).")
    if found.training_parameters:
        notes.append(f"Not counted: {found.training_parameters:,} parameters that serve training alone.")
    return notes


def _by(sizes: Sequence[int]) -> str | None:
    if not sizes:
        return None
    return str(sizes[0]) if len(sizes) == 1 else "×".join(str(size) for size in sizes)


def agreed(values: Sequence[float]) -> str | None:
    numbers = [f"{value:g}" for value in values]
    return None if not numbers else numbers[0] if len(set(numbers)) == 1 else "×".join(numbers)


def _exact(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

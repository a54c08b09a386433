"""Format a network's layers as a table: aligned text, Markdown, CSV or JSON."""

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

WIDTH = 100  # characters of the terminal table
NONE = "–"
COLUMNS = ("layer", "type", "output", "kernel", "stride", "padding", "groups", "parameters", "mult_adds", "units",
           "connections", "field", "jump", "start", "center")  # fmt: skip
NUMBERS = ("parameters", "mult_adds", "units", "connections")
# short names for the terminal; "" for convolutions, whose kernel is shown anyway
TYPES = {"conv": "", "linear": "full", "max pool": "max", "avg pool": "mean", "product": "a @ b", "rbf": "distance"}
HEADS = ("layer", "output", "type", "groups", "params", "m-adds", "units", "conns", "field", "jump", "start")
NOTE = (
    "params: parameters; m-adds: multiply-adds (half of FLOPs) without biases; units: outputs; conns: connections with"
    " biases. field, jump, start: the receptive field of unit i has `field` pixels from pixel start + i × jump on."
)
GATED = "*: plus the whole image, through gates (squeeze-and-excitation) or normalization statistics."


def terminal_table(name: str, found: Complexity, *, all_layers: bool) -> str:
    """Format the layers in at most WIDTH characters per line, counts with four digits."""
    lines = [HEADS, *(_cells(layer) for layer in shown(found, all_layers)), _totals(found)]
    others = sum(max(len(line[column]) for line in lines) + 1 for column in range(1, len(HEADS)))
    most = WIDTH - others  # characters for a name; a longer one loses its front, because its end identifies the layer
    cut = [(name if len(name) <= most else "…" + name[1 - most :], *cells) for name, *cells in lines]
    rows = aligned(cut, left=[0], gap=" ")
    notes = [*_left_out(found, all_layers), NOTE]
    if any(layer.field is not None and layer.field.is_gated for layer in found.layers):
        notes.append(GATED)
    title = f"{name}, {found.image_size} × {found.image_size} pixels"
    return "\n".join([title, *rows, *(textwrap.fill(note, WIDTH) for note in notes)]) + "\n"


def markdown_table(name: str, found: Complexity, *, all_layers: bool) -> str:
    """Format the layers as Markdown with exact counts."""
    # only counts are summed; output sizes and receptive fields have no total
    total = ["total"] + [""] * (len(COLUMNS) - 1)
    for column in NUMBERS:
        total[COLUMNS.index(column)] = f"{getattr(found, column):,}"
    rows = [[_exact(value) for value in record(layer).values()] for layer in shown(found, all_layers)]
    table = rows_as_markdown(COLUMNS, [*rows, total], left=[COLUMNS.index("layer"), COLUMNS.index("type")])
    notes = "".join(f"\n{note}" for note in _left_out(found, all_layers))
    return f"{name}, {found.image_size} × {found.image_size} pixels\n\n{table}{notes}"


def csv_table(found: Complexity, *, all_layers: bool) -> str:
    """Format the layers as CSV with exact counts; no totals, so that a column can be summed."""
    return rows_as_csv(COLUMNS, (list(record(layer).values()) for layer in shown(found, all_layers)))


def json_text(name: str, found: Complexity, *, all_layers: bool) -> str:
    """Format totals and layers as JSON with exact counts."""
    layers = [record(layer) for layer in shown(found, all_layers)]
    return json.dumps({"model": name, **totals(found), "layers": layers}, indent=1, ensure_ascii=False) + "\n"


def totals(found: Complexity) -> dict[str, int]:
    """Total counts of a network."""
    return {
        "image_size": found.image_size,
        "parameters": found.parameters,
        "training_parameters": found.training_parameters,
        "mult_adds": found.mult_adds,
        "units": found.units,
        "connections": found.connections,
    }


def shown(found: Complexity, all_layers: bool) -> list[Layer]:
    """Layers of the table: all, or those of convolutions, linear layers, pooling and products."""
    return [layer for layer in found.layers if all_layers or layer.kind not in UNSHOWN]


def record(layer: Layer) -> dict[str, Any]:
    """A layer's values for COLUMNS; None for those that it does not have."""
    windows = layer.field.windows if layer.field is not None else {}  # none after attention or global mixing
    # one number if height and width are equal, else both
    field, jump, start, center = (
        by_axis([getattr(window, name) for window in windows.values()]) for name in ("size", "jump", "start", "center")
    )
    # GATED explains the mark below the table
    gated = "*" if layer.field is not None and layer.field.is_gated else ""
    values = (layer.name, layer.kind, layer.size or None, _kernel(layer.kernel), by_axis(layer.stride),
              by_axis(layer.padding), layer.groups, layer.parameters, layer.mult_adds, layer.units, layer.connections,
              f"{field}{gated}" if field else None, jump if jump != "0" else None, start, center)  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def short(number: int) -> str:
    """Format a count with four digits: 105.4M; exact below 100,000."""
    if number < 100_000:
        return f"{number:,}"
    # "#" keeps trailing zeros, so that every number shows four digits
    unit, letter = next((u, letter) for u, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")) if number >= u)
    return f"{number / unit:#.4g}".rstrip(".") + letter


def _cells(layer: Layer) -> tuple[str, ...]:
    values = record(layer)
    kernel = f"{values['kernel']}/{values['stride']}" if values["kernel"] else ""
    kind = f"{TYPES.get(layer.kind, layer.kind)} {kernel}".strip()
    numbers = [short(values[name]) if values[name] else NONE for name in NUMBERS]
    field = [values[name] or NONE for name in ("field", "jump", "start")]
    return (
        layer.name,
        values["output"] or NONE,
        kind,
        str(layer.groups) if layer.groups > 1 else "",
        *numbers,
        *field,
    )


def _totals(found: Complexity) -> tuple[str, ...]:
    return ("total", "", "", "", *(short(getattr(found, name)) for name in NUMBERS), "", "", "")


def _left_out(found: Complexity, all_layers: bool) -> list[str]:
    """Notes on parameters that are in no row of the table."""
    notes = []
    # With these notes, the parameters of the rows add up to the total.
    for kind, words in (("norm", "normalization"), ("other", "embeddings, scales and similar layers")):
        parameters = sum(layer.parameters for layer in found.layers if layer.kind == kind)
        if parameters and not all_layers:
            notes.append(f"{parameters:,} of the parameters belong to {words} (layers=all shows them).")
    if found.training_parameters:
        notes.append(f"Not counted: {found.training_parameters:,} parameters that are used in training only.")
    return notes


def _kernel(sizes: Sequence[int]) -> str | None:
    if not sizes:
        return None
    return str(sizes[0]) if len(sizes) == 1 else "×".join(str(size) for size in sizes)


def by_axis(values: Sequence[float]) -> str | None:
    """Format the values of height and width: 3 if they are equal, else 3×5; None if there are none."""
    numbers = [f"{value:g}" for value in values]
    return None if not numbers else numbers[0] if len(set(numbers)) == 1 else "×".join(numbers)


def _exact(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

"""Compare published tables of sizes and costs (conf/sizes) with our counts.

Verdicts on a printed number:
- "equal": our count rounds to it at its printed precision;
- "cut off": our count truncates to it, as papers often do;
- "about": within 5% of a number printed with ~;
- "below": below a number printed with <.
Otherwise the row must have arithmetic, which is evaluated here: `ours_as`, from the paper's own layers, must give our
count exactly.
- "explained": `printed_as` gives the printed number from another interpretation of the same layers;
- "contradicted": no such interpretation is known, and the layers of the paper (or of its code) give our count;
- "DIFFERS": anything else. It is our mistake until proved otherwise, and the exit code is 1.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import operator
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tencrop.complexity.layers import WITH_UNITS, Layer
from tencrop.complexity.networks import complexity_of_file
from tencrop.complexity.render import by_axis
from tencrop.config import Printed, PrintedTable, UserError
from tencrop.printable import markdown_text
from tencrop.text_tables import aligned, csv_table, markdown_table

# papers print thousands of parameters in units of 1000 or, as GoogLeNet's table 1, of 1024
UNITS = {"": 1, "K": 10**3, "Ki": 2**10, "M": 10**6, "G": 10**9}
TILDE = 0.05  # relative tolerance of a number printed with "~"
MATCH, CUT, ABOUT, BELOW = "equal", "cut off", "about", "below"
EXPLAINED, CONTRADICTED, DIFFERS = "explained", "contradicted", "DIFFERS"

QUANTITIES: dict[str, Callable[[Sequence[Layer]], int]] = {
    "parameters": lambda layers: sum(layer.parameters for layer in layers),
    "weights": lambda layers: sum(layer.parameters - layer.biases for layer in layers),
    "mult_adds": lambda layers: sum(layer.mult_adds for layer in layers),
    # what most papers call FLOPs: a multiplication and an addition each
    "operations": lambda layers: 2 * sum(layer.mult_adds for layer in layers),
    "units": lambda layers: sum(layer.units for layer in layers if layer.kind in WITH_UNITS),
    # without the last layer, whose units are the classes
    "hidden units": lambda layers: sum(layer.units for layer in layers[:-1] if layer.kind in WITH_UNITS),
    "outputs": lambda layers: sum(layer.units for layer in layers),
    "connections": lambda layers: sum(layer.connections for layer in layers),
    "connections without biases": lambda layers: sum(layer.connections - layer.bias_connections for layer in layers),
    "layers with weights": lambda layers: sum(layer.kind in WITH_UNITS for layer in layers),
}
# Quantities that are compared as text. They are those of the last selected layer, except "joined", which concatenates
# the maps of all selected layers, such as the branches of an inception module.
SHAPES: dict[str, Callable[[Sequence[Layer]], str | None]] = {
    "output": lambda layers: layers[-1].size,
    "joined": lambda layers: f"{_side(layers[-1])}×{sum(layer.output[0] for layer in layers)}",
    "side": lambda layers: _side(layers[-1]),
    "kernel": lambda layers: "×".join(str(size) for size in layers[-1].kernel),
    "stride": lambda layers: by_axis(layers[-1].stride),
}


@dataclass(frozen=True)
class Comparison:
    """A printed number, our count and the verdict."""

    printed: Printed
    quantity: str
    ours: int | str
    verdict: str  # equal | cut off | about | below | explained | contradicted | DIFFERS
    ours_in_unit: str

    @property
    def is_settled(self) -> bool:
        return self.verdict != DIFFERS


def compare(table: PrintedTable) -> list[Comparison]:
    """Compare every row of a table; raises UserError for a row that names an unknown layer, quantity or unit."""
    return [_compared(row, table) for row in table.rows]


def _compared(row: Printed, table: PrintedTable) -> Comparison:
    quantity, unit = row.quantity or table.quantity, row.unit if row.unit is not None else table.unit or ""
    if unit not in UNITS:
        raise UserError(f"{row.row}: unit={unit}: must be one of {', '.join(UNITS)}")
    found = complexity_of_file(row.model, row.image_size, **(row.kwargs or {}))
    layers = _matching(row, found.layers)
    if quantity in SHAPES:  # text: equal or not, there is no precision
        ours: int | str = SHAPES[quantity](layers) or "none"
        verdict = MATCH if ours == row.value else CONTRADICTED if row.because and row.ours_as == ours else DIFFERS
        return Comparison(row, quantity, ours, verdict, str(ours))
    if quantity == "input":  # of the network, not of a layer: the number of pixel values
        ours = 3 * found.image_size**2
    elif quantity in QUANTITIES:
        ours = QUANTITIES[quantity](layers)
    else:
        names = ", ".join([*QUANTITIES, "input", *SHAPES])
        raise UserError(f"{row.row}: quantity={quantity}: must be one of {names}")
    return Comparison(row, quantity, ours, _verdict(row, ours, unit), _in_unit(ours, row, unit))


def _verdict(row: Printed, ours: int, unit: str) -> str:
    """Agreement first; a row that agrees needs no arithmetic."""
    if agreement := _agreement(ours, row, unit):
        return agreement
    # `because` is required as well: arithmetic without a reason could be fitted to any number
    if not row.because or not row.ours_as or evaluate(row.ours_as) != ours:
        return DIFFERS
    if row.printed_as is None:
        return CONTRADICTED
    return EXPLAINED if _agreement(evaluate(row.printed_as), row, unit) in (MATCH, ABOUT) else DIFFERS


def _agreement(count: int, row: Printed, unit: str) -> str | None:
    """Verdict on a count that agrees with the printed number; None if it does not agree."""
    found, printed, step = count / UNITS[unit], _number(row.value), _step(row)
    if row.value.startswith("~"):
        return ABOUT if abs(found - printed) <= TILDE * printed else None
    if row.value.startswith("<"):
        return BELOW if found < printed else None
    # (1 + 1e-9): a count in the middle between two printed numbers may round to either, despite binary fractions
    if abs(found - printed) <= step / 2 * (1 + 1e-9):
        return MATCH
    return CUT if 0 <= found - printed < step else None


def _side(layer: Layer) -> str:
    return "×".join(layer.size.split("×")[:2])


def _matching(row: Printed, all_layers: Sequence[Layer]) -> list[Layer]:
    # case-sensitive shell patterns, such as "conv* fc6"; without any, the whole network
    patterns = (row.layers or "*").split()
    layers = [layer for layer in all_layers if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in patterns)]
    if not layers:
        raise UserError(f"{row.row}: layers={row.layers}: {row.model} has no such layer")
    return layers


def _number(value: str) -> float:
    text = value.lstrip("~<").replace(",", "").strip()
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"value={value}: is not a number; write 133 with unit: M, ~4.1 or <10") from error


def _step(row: Printed) -> float:
    """Printed precision: 0.1 for 6.8; `step` overrides it for numbers such as 1,900, rounded to hundreds."""
    return row.step or 10.0 ** -len(row.value.partition(".")[2])


def _in_unit(ours: int, row: Printed, unit: str) -> str:
    # with a unit, two decimals more than printed, which show how close a rounded number is
    decimals = len(row.value.partition(".")[2]) + (2 if unit else 0)
    return f"{ours / UNITS[unit]:,.{decimals}f}{unit}"


OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}  # fmt: skip


def evaluate(arithmetic: str) -> int:
    """Evaluate integers with + - * // ** and parentheses; raises UserError for anything else.

    Walks the syntax tree instead of calling eval(): a table is data and must not run code.
    """

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:  # `is`: bool is a subclass of int
            return node.value
        raise UserError(f"arithmetic {arithmetic!r}: use only integers, + - * // ** and parentheses")

    try:
        return value(ast.parse(arithmetic, mode="eval").body)
    except SyntaxError as error:
        raise UserError(f"arithmetic {arithmetic!r}: {error.msg}") from error


def terminal(table: PrintedTable, comparisons: Sequence[Comparison]) -> str:
    """Format as aligned text; the reason for a difference follows its row."""
    heads = ("", "quantity", "printed", "ours", "")
    lines = [heads, *(_cells(table, comparison) for comparison in comparisons)]
    text = [table.title, f"Source: {table.source}"] + ([table.note] if table.note else []) + [""]
    for number, line in enumerate(aligned(lines, left=[0, 1])):
        text.append(line)
        for why in _reasons(comparisons[number - 1]) if number else []:
            text.append(textwrap.fill(why, 100, initial_indent=" " * 4, subsequent_indent=" " * 6))
    text += ["", _summary(comparisons)]
    return "\n".join(text) + "\n"


def markdown(table: PrintedTable, comparisons: Sequence[Comparison]) -> str:
    """Format the comparison as Markdown."""
    heads = ("row", "quantity", "printed", "ours", "verdict", "why")
    # "*" would start emphasis in Markdown, and arithmetic is full of it
    rows = [(*_cells(table, comparison), "; ".join(_reasons(comparison))) for comparison in comparisons]
    # arithmetic in a reason has *, which would otherwise begin italics
    body = markdown_table(heads, rows, left=[0, 1, 4, 5], escape=lambda cell: markdown_text(cell).replace("*", "\\*"))
    note = f" {table.note}" if table.note else ""
    return f"**{table.title}**\n\nSource: {table.source}.{note}\n\n{body}\n{_summary(comparisons)}\n"


def records(table: PrintedTable, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """All facts of every row, for CSV and JSON."""
    return [
        {**asdict(c.printed), "quantity": c.quantity, "unit": c.printed.unit or table.unit, "ours": c.ours,
         "verdict": c.verdict}
        for c in comparisons
    ]  # fmt: skip


def json_text(table: PrintedTable, comparisons: Sequence[Comparison]) -> str:
    """Format the comparison as JSON."""
    head = {"title": table.title, "source": table.source, "note": table.note}
    return json.dumps({**head, "rows": records(table, comparisons)}, indent=1, ensure_ascii=False) + "\n"


def csv_text(table: PrintedTable, comparisons: Sequence[Comparison]) -> str:
    """Format the comparison as CSV."""
    rows = records(table, comparisons)
    return csv_table(list(rows[0]), (list(row.values()) for row in rows))


FORMATS = {"terminal": terminal, "markdown": markdown, "csv": csv_text, "json": json_text}


def _cells(table: PrintedTable, comparison: Comparison) -> tuple[str, ...]:
    row = comparison.printed
    unit = row.unit if row.unit is not None else table.unit or ""
    printed = row.value + ("" if comparison.quantity in SHAPES else unit)
    return row.row, comparison.quantity, printed, comparison.ours_in_unit, comparison.verdict


def _reasons(comparison: Comparison) -> list[str]:
    """The row's reason and the arithmetic for its difference."""
    row = comparison.printed
    reasons = [row.because] if row.because else []
    if comparison.verdict in (EXPLAINED, CONTRADICTED, DIFFERS) and comparison.quantity not in SHAPES:
        for words, arithmetic in (("printed", row.printed_as), ("ours", row.ours_as)):
            if arithmetic:
                reasons.append(f"{words}: {evaluate(arithmetic):,} = {arithmetic.replace('**', '^')}")
    return reasons


def _summary(comparisons: Sequence[Comparison]) -> str:
    found = [comparison.verdict for comparison in comparisons]
    words = {MATCH: "equal to the printed precision", CUT: "cut off to it",
             ABOUT: "within 5% of a printed ~", BELOW: "below a printed bound", EXPLAINED: "explained by arithmetic",
             CONTRADICTED: "contradicted by the paper's own layers", DIFFERS: "DIFFER"}  # fmt: skip
    counts = [f"{found.count(verdict)} {text}" for verdict, text in words.items() if verdict in found]
    return f"Of {len(found)}: {', '.join(counts)}."

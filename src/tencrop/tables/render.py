"""Renders a comparison table as terminal text, Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from tencrop.printable import markdown_text
from tencrop.tables.lines import GUESSED, NONE, UNPAIRED, Line
from tencrop.tables.schema import COLUMNS, ErrorTable, RowProtocol
from tencrop.text_tables import aligned
from tencrop.text_tables import csv_table as rows_as_csv
from tencrop.text_tables import markdown_table as rows_as_markdown

_PROTOCOL_KEYS = tuple(field.name for field in fields(RowProtocol))
# Programs read these columns: append new ones at the end.
CSV_COLUMNS = ("table", "row", "id", "unit", "column", "printed", "ours", "difference", "low", "high", "images",
               "seeds", "verdict", "guessed", "confidence", "protocol", "run", "from_base",
               "exceeds_seeds", "ours_mean", "ours_std", "from_base_mean",
               "from_base_half_width")  # fmt: skip
HEADS = ("row", "protocol", "printed", "ours", "difference", "95% interval", "from base", "exceeds seeds", "seeds",
         "verdict", "guessed", "confidence", "run")  # fmt: skip
# Fields of a line's cells, with their heads.
JOINED = {"printed": "printed", "ours": "ours", "difference": "difference", "interval": "95% interval",
          "from_base": "from base", "exceeds_seeds": "exceeds seeds", "verdict": "verdict",
          "confidence": "confidence"}  # fmt: skip
ABOUT_PRINTED = {"printed", "difference", "verdict", "guessed", "confidence"}
FROM_BASE = {"from base", "exceeds seeds"}
NUMBERS = {"printed", "ours", "difference", "95% interval", "from base", "seeds"}  # right-aligned columns
FROM_BASE_NOTE = (
    "From base: mean difference from the base row, seed by seed over the seeds that both have, ± half of its 95%"
    " interval (Student's t of the paired differences). It exceeds the seeds' spread if this interval excludes 0."
)
UNPAIRED_NOTE = (
    f"{UNPAIRED} The rows' seeds differ: difference of the means, with Student's t of as many degrees of freedom as the"
    " row with fewer runs has."
)
DIFFERENCE_NOTE = (
    "Ours is the mean difference from the base row over seeds ± its standard deviation, seed by seed where both rows"
    " have the same seeds, otherwise of the means; the interval is Student's t."
)
WIDTH = 110  # characters per line of notes on the terminal; the table itself is not wrapped
GUESS_NOTE = f"{GUESSED} The band of fewer than three seeds is a guess."
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "|": "$|$", "[": "{[}", "*": "{*}",  # at the start of a row, \\ would take the last two as its arguments
    "–": "--", "−": "$-$", "±": r"$\pm$", "†": r"$\dagger$", "×": r"$\times$",
}  # fmt: skip


def terminal_table(table: ErrorTable, lines: Sequence[Line]) -> str:
    """The table in aligned columns, without columns that are empty in every row."""
    grid = _grid(table, lines)
    # zip(*grid[1:]) transposes the body: a column of dashes is dropped, whatever its head is.
    kept = [number for number, column in enumerate(zip(*grid[1:], strict=True)) if {NONE} != set(column)]
    rows = [[row[number] for number in kept] for row in grid]
    about, notes = (
        [textwrap.fill(text, WIDTH) for text in found]
        for found in (about_table(table, lines), notes_of_table(table, lines))
    )
    return "\n".join([table.title, *about, "", *aligned(rows, left=_text_columns(rows[0])), *notes]) + "\n"


def markdown_table(table: ErrorTable, lines: Sequence[Line]) -> str:
    """The table in Markdown, with its title in bold above."""
    grid = _grid(table, lines)
    body = rows_as_markdown(grid[0], grid[1:], left=_text_columns(grid[0]))
    about = "".join(f"{markdown_text(text)}\n\n" for text in about_table(table, lines))
    notes = "".join(f"\n{markdown_text(note)}\n" for note in notes_of_table(table, lines))
    return f"**{markdown_text(table.title)}**\n\n{about}{body}{notes}"


def csv_table(table: ErrorTable, lines: Sequence[Line]) -> str:
    """The table in long format, one line per row and column; empty fields stay empty."""
    rows = []
    for line in lines:
        for cell in line.cells:
            # Numbers for programs: low and high, ASCII minus, no commas.
            ours, difference, interval, from_base = (
                text.replace("−", "-") for text in (cell.ours, cell.difference, cell.interval, cell.from_base)
            )
            low, _, high = interval.partition(" – ")
            (mean, _, std), (from_base_mean, _, half_width) = (
                text.removesuffix(UNPAIRED).partition(" ± ") for text in (ours, from_base)
            )
            row = (table.name, line.row.label, line.row.id, table.unit, cell.column, cell.printed, ours, difference,
                   low, high, line.num_images.replace(",", ""), line.seeds, cell.verdict, line.guessed,
                   line.row.confidence.get(cell.column, NONE), line.protocol, line.run, from_base,
                   cell.exceeds_seeds, mean, std, from_base_mean, half_width)  # fmt: skip
            # Spreadsheets and pandas take an empty field for a missing number, and a dash for text.
            rows.append(["" if value == NONE else value for value in row])
    return rows_as_csv(CSV_COLUMNS, rows)


def latex_table(table: ErrorTable, lines: Sequence[Line]) -> str:
    """The table in LaTeX; the document needs the booktabs package."""
    grid = _grid(table, lines)
    columns = "".join("r" if column in NUMBERS else "l" for column in grid[0])
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in grid]
    # LaTeX has one place for everything that the other formats print above and below the table.
    caption = ". ".join(
        text.rstrip(".") for text in (table.title, *about_table(table, lines), *notes_of_table(table, lines)) if text
    )
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{latex_text(caption)}.}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """`text` with LaTeX's special characters escaped."""
    # Character by character: successive replacements would escape the backslashes of earlier ones.
    return "".join(LATEX.get(sign, sign) for sign in text)


def _grid(table: ErrorTable, lines: Sequence[Line]) -> list[list[str]]:
    """Column heads and rows.

    The protocol has a column only if the rows differ in it, and guesses and differences from a base only if there are
    any; a table of our own measurements has no columns about printed numbers.
    """
    protocols = own_protocols(lines)
    hidden = set() if any(text not in ("", NONE) for text in protocols) else {"protocol"}
    hidden |= set() if table.has_printed else ABOUT_PRINTED
    hidden |= set() if has_from_base(lines) else FROM_BASE
    hidden |= set() if any(line.guesses for line in lines) else {"guessed"}
    rows = []
    for line, protocol in zip(lines, protocols, strict=True):
        cells = {"row": line.row.label, "protocol": protocol}
        cells |= {head: line.joined(field) for field, head in JOINED.items()}
        cells |= {"seeds": line.seeds, "guessed": line.guessed, "run": line.run}
        rows.append([cells[head] for head in HEADS if head not in hidden])
    return [[head for head in HEADS if head not in hidden], *rows]


def _text_columns(heads: Sequence[str]) -> list[int]:
    """The columns that are aligned left: all but the numbers."""
    return [number for number, head in enumerate(heads) if head not in NUMBERS]


def has_from_base(lines: Sequence[Line]) -> bool:
    """Whether a table of our own has differences from a base row."""
    return any(cell.from_base != NONE for line in lines for cell in line.cells)


def own_protocols(lines: Sequence[Line]) -> list[str]:
    """The protocol to print in each row: empty where it is the shared one, which stands above the table."""
    shared = _shared_protocol(lines)
    return ["" if line.protocol == shared else line.protocol for line in lines]


def _shared_protocol(lines: Sequence[Line]) -> str | None:
    """The protocol of all rows that have one, or of most of them; None if there is none."""
    found = Counter(line.protocol for line in lines if line.protocol != NONE)
    protocol, count = next(iter(found.most_common(1)), (None, 0))
    # Only of a majority: naming a protocol above the table that most rows do not have would mislead.
    return protocol if 2 * count > found.total() else None


def about_table(table: ErrorTable, lines: Sequence[Line]) -> list[str]:
    """Lines above the table, about what all rows share: source, data, columns, protocol."""
    columns = " / ".join(COLUMNS[column] for column in table.columns)
    images = "" if table.num_images is None else f", {table.num_images:,} images"
    data = f"{table.data} {table.split}{images}"
    if table.data_fingerprint is not None:  # names images that `data` leaves open
        data += "".join(f", {split} {digest[:12]}" for split, digest in table.data_fingerprint.items())
    about = [f"Source: {table.source}", f"{columns} {table.unit}, percent; {data}"]
    if protocol := _shared_protocol(lines):
        others = any(own not in ("", NONE) for own in own_protocols(lines))
        about.append(f"Protocol: {protocol}{', where a row names no other' if others else ''}")
    if guesses := _not_stated(lines):
        about.append(f"Not stated about the protocol: {guesses}")
    return about


def _not_stated(lines: Sequence[Line]) -> str:
    """Protocol settings not stated in any row, then those of single rows: `filter; side, size of "ResNet-50", ...`."""
    tested = [line for line in lines if line.protocol != NONE]
    shared = [key for key in _PROTOCOL_KEYS if tested and all(key in line.not_stated for line in tested)]
    labels: dict[str, list[str]] = {}
    for line in tested:
        if others := [key for key in line.not_stated if key not in shared]:
            labels.setdefault(", ".join(others), []).append(f'"{line.row.label}"')
    some = [f"{keys} of {', '.join(of)}" for keys, of in labels.items()]
    return "; ".join([*([", ".join(shared)] if shared else []), *some])


def notes_of_table(table: ErrorTable, lines: Sequence[Line]) -> list[str]:
    """Lines below the table."""
    cells = [cell for line in lines for cell in line.cells]
    notes = {
        table.note: table.note is not None,
        DIFFERENCE_NOTE: table.has_printed and any(line.row.delta_of and line.joined("ours") != NONE for line in lines),
        FROM_BASE_NOTE: has_from_base(lines),
        UNPAIRED_NOTE: any(cell.from_base.endswith(UNPAIRED) for cell in cells),
        GUESS_NOTE: any(cell.verdict.endswith(GUESSED) for cell in cells),
    }
    return [note for note, applies in notes.items() if note is not None and applies]

"""Papers' error tables in HTML: sections of the report's page, and a page of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tencrop.printable import printable
from tencrop.report.templating import render
from tencrop.tables.lines import NONE, Key, Line, Ours, lines_of
from tencrop.tables.render import about_table, notes_of_table
from tencrop.tables.schema import COLUMNS, ErrorTable

# Head of each column, and the field of a cell that it shows.
FIELDS = {"Printed": "printed", "Ours": "ours", "Difference": "difference", "95% interval": "interval",
          "Verdict": "verdict"}  # fmt: skip


def table_html(table: ErrorTable, lines: Sequence[Line]) -> Markup:
    """A table: a group of lines for every row, with a line for every column that prints or measures a number.

    Everything about the whole row heads the group: narrow columns of numbers fit a telephone, where the interval moves
    below our error.
    """
    groups = [(line, _about_row(line), _cells(line)) for line in lines]
    about, notes = about_table(table, lines), notes_of_table(table, lines)
    columns = FIELDS if table.has_printed else {head: FIELDS[head] for head in ("Ours", "95% interval")}
    return render(
        "paper_table.html", title=table.title, about=about, notes=notes, columns=columns, groups=groups, empty=NONE
    )


def table_page(table: ErrorTable, lines: Sequence[Line]) -> str:
    """A page with one table, which loads nothing, as the report's does."""
    return printable(f"{render('table_page.html', title=table.title, table=table_html(table, lines))}\n")


def tables_with_runs(tables: Sequence[ErrorTable], matched: Mapping[Key, Ours]) -> list[Markup]:
    """The tables in which at least one row has a run of ours, whether or not it supports a claim."""
    measured = {name for name, _ in matched}
    return [table_html(table, lines_of(table, matched)) for table in tables if table.name in measured]


def _about_row(line: Line) -> str:
    """Protocol, seeds, images, confidence, guesses, and the run or why there is none, in one sentence."""
    measured = [] if line.seeds == NONE else [f"{line.seeds} seed{'' if line.seeds == '1' else 's'}"]
    measured += [] if line.num_images == NONE else [f"{line.num_images} images"]
    guesses = [f"guessed: {line.guessed}"] if line.guesses else []
    confidence = [] if line.joined("confidence") == NONE else [f"printed number: {line.joined('confidence')}"]
    return " · ".join([*measured, *guesses, *confidence, line.run])


def _cells(line: Line) -> list[tuple[str, object]]:
    return [(COLUMNS[cell.column], cell) for cell in line.cells if (cell.printed, cell.ours) != (NONE, NONE)]

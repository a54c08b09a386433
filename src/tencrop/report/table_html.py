"""Papers' error tables in HTML: sections of the report's page, and a page of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tencrop.printable import printable
from tencrop.report.templating import render
from tencrop.tables.lines import NONE, Key, Line, Measurement, lines_of
from tencrop.tables.render import about_table, has_from_base, notes_of_table, own_protocols
from tencrop.tables.schema import COLUMNS, ErrorTable

# Head of each column, and the field of a cell that it shows.
FIELDS = {"Printed": "printed", "Ours": "ours", "Difference": "difference", "95% interval": "interval",
          "From base": "from_base", "Exceeds seeds": "exceeds_seeds", "Verdict": "verdict"}  # fmt: skip
OF_OWN = {"ours", "interval", "from_base", "exceeds_seeds"}  # fields of a table of our own measurements


def table_html(table: ErrorTable, lines: Sequence[Line]) -> Markup:
    """A table: a group of lines for every row, with a line for every column that prints or measures a number.

    Everything about the whole row heads the group: narrow columns of numbers fit a telephone, where the interval moves
    below our error.
    """
    protocols = [NONE if protocol == "" else protocol for protocol in own_protocols(lines)]
    groups = [(line, protocol, _about_row(line), _cells(line)) for line, protocol in zip(lines, protocols, strict=True)]
    about, notes = about_table(table, lines), notes_of_table(table, lines)
    hidden = set() if has_from_base(lines) else {"from_base", "exceeds_seeds"}
    hidden |= set() if table.has_printed else set(FIELDS.values()) - OF_OWN
    columns = {head: field for head, field in FIELDS.items() if field not in hidden}
    return render(
        "paper_table.html", title=table.title, about=about, notes=notes, columns=columns, groups=groups, empty=NONE
    )


def table_page(table: ErrorTable, lines: Sequence[Line]) -> str:
    """A page with one table, which loads nothing, as the report's does."""
    return printable(f"{render('table_page.html', title=table.title, table=table_html(table, lines))}\n")


def tables_with_runs(tables: Sequence[ErrorTable], matched: Mapping[Key, Measurement]) -> list[Markup]:
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

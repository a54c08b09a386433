"""Tables as text: aligned columns for a terminal or log, Markdown, and CSV.

Rows are sequences of cells that are text already: each table decides how its numbers are rounded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from tencrop.printable import markdown_text

Cells = Sequence[str]


def aligned(rows: Sequence[Cells], *, left: Collection[int] = (), gap: str = "  ") -> list[str]:
    """One line per row, padded to the widest cell of each column; `left` lists the columns to align left."""
    # len() counts code points. That is the display width of every sign in our tables; wide East Asian signs in a class
    # or folder name would shift one line, which is not worth a dependency on wcwidth.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(gap.join(cells).rstrip())  # padding behind a left-aligned last cell would wrap narrow terminals
    return lines


def markdown_table(
    head: Cells, rows: Iterable[Cells], *, left: Collection[int] = (), escape: Callable[[str], str] = markdown_text
) -> str:
    """A table in GitHub's Markdown, with a final newline; `left` as in `aligned`, `escape` is applied to every cell."""
    alignment = [":--" if number in left else "--:" for number in range(len(head))]
    lines = [[escape(cell) for cell in head], alignment, *([escape(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def csv_table(head: Cells, rows: Iterable[Sequence[Any]]) -> str:
    """RFC 4180 quoting, but lines end in a line feed alone: git and Unix tools take a carriage return for content."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()

"""A titled table that is printed on the terminal and written as Markdown and HTML, with the same cells in each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tencrop.console import plain_console
from tencrop.printable import markdown_text, printable
from tencrop.report.templating import render
from tencrop.text_tables import aligned, markdown_table

TERMINAL_ROWS, PAGE_ROWS = 10, 20  # of a table that may have thousands; a CSV file has them all


@dataclass(frozen=True)
class Block:
    """A table with a title and a note, either of which may be empty, as may the rows."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    left: Collection[int] = ()  # columns to align left
    note: str = ""
    more_in: str = ""  # where the rows are that do not fit
    all_rows: bool = False  # show every row, however many there are

    def terminal(self, most: int = TERMINAL_ROWS) -> str:
        """Lines of text, with at most this many rows."""
        rows = [[printable(cell) for cell in row] for row in self._shown(most)]
        table = aligned([self.head, *rows], left=self.left, gap="   ") if rows else []
        lines = [self.title, *(f"  {line}" for line in table), self._rest(most), self.note]
        return "\n".join(line for line in lines if line)

    def markdown(self, most: int = PAGE_ROWS) -> str:
        """Paragraphs and a table, with a final newline."""
        table = markdown_table(self.head, self._shown(most), left=self.left) if self.rows else ""
        texts = [self.title and f"**{markdown_text(self.title)}**\n", table, self._rest(most), self.note]
        return "\n".join(text if text.endswith("\n") else f"{markdown_text(text)}\n" for text in texts if text)

    def html(self, most: int = PAGE_ROWS) -> Markup:
        """The same as HTML."""
        rows = [[printable(cell) for cell in row] for row in self._shown(most)]
        return render("block.html", block=self, rows=rows, rest=self._rest(most))

    def _shown(self, most: int) -> Sequence[Sequence[str]]:
        return self.rows if self.all_rows else self.rows[:most]

    def _rest(self, most: int) -> str:
        left_out = len(self.rows) - len(self._shown(most))
        where = f", in {self.more_in}" if self.more_in else ""
        return f"and {left_out:,} more{where}" if left_out > 0 else ""


def print_paragraphs(texts: Sequence[str]) -> None:
    """Print texts with an empty line after each; a reader that stops early (`| head`) is no error."""
    # soft_wrap: rich would break lines at 80 columns in a log
    plain_console().print("\n\n".join(texts), end="\n\n", soft_wrap=True)

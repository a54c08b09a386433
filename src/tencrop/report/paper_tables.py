"""report.py table=NAME: prints a paper's error table with our errors; writes it as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tencrop.config import UserError
from tencrop.config.writable import check_writable
from tencrop.files import atomic_write
from tencrop.report.matching import match_runs
from tencrop.report.table_html import table_page
from tencrop.tables.lines import lines_of
from tencrop.tables.reading import ERRORS, chosen_tables, read_tables, with_bases
from tencrop.tables.render import csv_table, latex_table, markdown_table, terminal_table
from tencrop.text_tables import aligned

TITLES = "?"  # as a table's name: list them
OUTPUT, HASHES = Path("report"), "tables/learning_hashes.json"  # where report.py writes by default; a cache within it
DEFAULTS = (Path("runs"), Path("evaluations"))  # where train.py and evaluate.py write by default
FORMATS = {"md": markdown_table, "csv": csv_table, "tex": latex_table, "html": table_page}


def report_tables(name: str, runs: Sequence[str], output: Path, folder: Path = ERRORS) -> int:
    """Print the table `name`, or with "all" every table, and write it to `output`/tables; "?" only lists the titles.

    Runs and ensembles are searched in and below `runs`, by default in runs/ and evaluations/. Returns the exit code.
    """
    if name == TITLES:
        show([_titles(folder)])
        return 0
    tables, paths = chosen_tables(name, folder), places(runs)
    # the cache saves composing every row, which takes seconds for table=all
    out, broken, shown, written = output / "tables", list[UserError](), list[str](), list[Path]()
    check_writable(out / f"{name}.md", remedy="make room, or name another folder with output=DIR")
    matched = match_runs(with_bases(tables, folder), paths, kept=output / HASHES, on_broken=broken.append)
    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        lines = lines_of(table, matched)
        shown.append(terminal_table(table, lines))
        for suffix, render in FORMATS.items():
            written.append(out / f"{table.name}.{suffix}")
            atomic_write(written[-1], render(table, lines).encode())
    show([*shown, *(map(str, written) if len(tables) == 1 else [str(out)])])
    for error in broken:  # after the table, where they are not scrolled away
        print(f"error: left out of the tables: {error}", file=sys.stderr)
    return 2 if broken else 0


def _titles(folder: Path) -> str:
    """One line per table: its name and title."""
    tables = read_tables(folder)
    return "\n".join(aligned([(table.name, table.title) for table in tables], left=[0, 1]))


def places(runs: Sequence[str]) -> list[Path]:
    """The folders in which runs and ensembles are searched."""
    return [Path(run) for run in runs] or [path for path in DEFAULTS if path.is_dir()]


def show(texts: Sequence[str]) -> None:
    """Print texts, one below the other."""
    try:
        print("\n".join(texts), flush=True)
    except BrokenPipeError:  # `| head` has closed the pipe
        # Python flushes stdout once more as it exits, and would print a traceback: give it somewhere to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""report.py compare=[A,B]: compares two runs or score files, on the terminal, as Markdown, as CSV and as a page.

Prints errors, McNemar's test, the images that flip and the classes that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tencrop.config import UserError
from tencrop.config.writable import check_writable
from tencrop.files import atomic_write
from tencrop.printable import markdown_text, printable
from tencrop.report.blocks import Block, print_paragraphs
from tencrop.report.comparison_html import comparison_page, comparison_section
from tencrop.report.run_comparison import Comparison, compare, differing
from tencrop.report.score_sources import read_saved, score_files
from tencrop.text_tables import csv_table

MARKDOWN, PAGE = "comparison.md", "comparison.html"
FLIPS, CLASSES = "comparison-flips.csv", "comparison-classes.csv"
# Thousands of ImageNet's 50,000 images may flip; the CSV files have them all.
MARKDOWN_ROWS = 50
ABOUT_TEST = (
    "p: McNemar's exact test, two-sided, on the images that only one of the two gets wrong. 95% interval of B − A in"
    " points: Newcombe 1998, method 10, for paired rates."
)
FLIP_COLUMNS = ("scores", "k", "only_wrong", "index", "image", "label", "answer_a", "answer_b")
CLASS_COLUMNS = ("scores", "k", "label", "class", "images", "errors_a", "errors_b")
Cells = tuple[Any, ...]


def report_comparison(
    inputs: Sequence[str], *, average: str, ks: Sequence[int], output: Path, data_root: str | None = None
) -> int:
    """Compare the score files that have the same name in both runs, or two files. Returns the exit code.

    data_root: prepared data that names images and classes, for score files outside run folders. Raises UserError unless
    there are two inputs, with scores of the same images and labels.
    """
    if len(inputs) != 2:
        raise UserError(f"compare=[{','.join(inputs)}]: takes two run folders or score files, as compare=[A,B]")
    check_writable(output / MARKDOWN, remedy="make room, or name another folder with output=DIR")
    # Printed and written only after every pair has been compared: an error in the last one leaves no half a report.
    paragraphs, texts, sections = list[str](), list[str](), list[Markup]()
    flips, classes = list[Cells](), list[Cells]()
    for a, b in _file_pairs(*inputs):  # one pair at a time: ImageNet's scores take 400 MB a file
        one = compare(*(read_saved(path, average, data_root=data_root) for path in (a, b)), ks=ks)
        tables = blocks(one, output)
        paragraphs += [printable(_head(one)), *(table.terminal() for table in tables)]
        texts.append(_markdown(one, tables))
        sections.append(comparison_section(one, title=_name(one), head=_head(one), tables=tables))
        flips += _flip_rows(one)
        classes += _class_rows(one)
    # The page and the texts come from the same blocks, so that no number can differ between them.
    files = {
        PAGE: comparison_page(sections),
        MARKDOWN: "\n".join(texts),
        FLIPS: csv_table(FLIP_COLUMNS, flips),
        CLASSES: csv_table(CLASS_COLUMNS, classes),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        atomic_write(output / name, printable(content).encode())
    print_paragraphs([*paragraphs, "\n".join(str(output / name) for name in files)])
    return 0


def blocks(comparison: Comparison, output: Path) -> list[Block]:
    """Errors and test, 2 x 2 counts, images that flip at the first k, and classes that differ at it."""
    # Images and classes at the first k only: lists for every k would bury the errors above them.
    k, names = comparison.ks[0], comparison.named.classes
    flips = list(_flip_rows(comparison))
    found = [_error_block(comparison), _count_block(comparison)]
    for wrong in ("A", "B"):
        # The names begin at column 4 of FLIP_COLUMNS.
        flipped = [row[4:] for row in flips if row[1:3] == (k, wrong)]
        title = f"Images that only {wrong} gets wrong at top-{k}: {len(flipped):,}"
        head = ("image", "label", "A's answer", "B's answer")
        found.append(Block(title, head, flipped, left=range(4), more_in=str(output / FLIPS)))
    rows = [
        (names[label], f"{images:,}", _percent(a / images), _percent(b / images), _signed((b - a) / images))
        for label, images, a, b in comparison.differences_of_classes(k)
    ]
    title = f"Classes by difference of top-{k} error, largest first" if rows else f"No class differs at top-{k}."
    columns = ("class", "images", "A %", "B %", "B − A")
    return [*found, Block(title, columns, rows, left=(0,), more_in=str(output / CLASSES))]


def _error_block(comparison: Comparison) -> Block:
    rows = []
    for k in comparison.ks:
        one = comparison.paired(k)
        rates = [_percent(errors / one.num_images) for errors in (one.errors_a, one.errors_b)]
        # Newcombe's interval and McNemar's p use the same counts but are different methods: near p = 0.05 they may
        # disagree.
        low, high = map(_signed, one.interval)
        rows.append((f"top-{k}", *rates, _signed(one.difference), f"{low} to {high}", f"{one.p_value:.3g}"))
    return Block("", ("error", "A %", "B %", "B − A", "95% interval", "p"), rows, left=(0,), note=ABOUT_TEST)


def _count_block(comparison: Comparison) -> Block:
    rows = []
    for k in comparison.ks:
        one = comparison.paired(k)
        rows += [
            (f"top-{k}", "A right", f"{one.both_right:,}", f"{one.only_b_wrong:,}"),
            ("", "A wrong", f"{one.only_a_wrong:,}", f"{one.both_wrong:,}"),
        ]
    return Block("Images", ("", "", "B right", "B wrong"), rows, left=(0, 1))


def _flip_rows(comparison: Comparison) -> Iterator[Cells]:
    """One row for each image and k at which only one of the two is wrong, as FLIP_COLUMNS."""
    names, labels = comparison.named.classes, comparison.a.labels
    for k in comparison.ks:
        wrong_a, wrong_b = comparison.wrong(k)
        # The images that both get wrong tell nothing about the difference, however different the two answers are.
        for index in np.flatnonzero(wrong_a != wrong_b).tolist():
            texts = [names[int(which[index])] for which in (labels, *comparison.answered)]
            only = "A" if wrong_a[index] else "B"
            yield (_name(comparison), k, only, index, comparison.named.image_name(index), *texts)


def _class_rows(comparison: Comparison) -> Iterator[Cells]:
    for k in comparison.ks:
        for label, *counts in comparison.differences_of_classes(k):
            yield (_name(comparison), k, label, comparison.named.classes[label], *counts)


def _name(comparison: Comparison) -> str:
    names = [comparison.a.name, comparison.b.name]
    # Score files are named after their protocol, so equal names are the normal case.
    return names[0] if names[0] == names[1] else " and ".join(names)


def _head(comparison: Comparison) -> str:
    a, b = comparison.a, comparison.b
    lines = [f"{letter}  {one.path} ({one.metadata.get('model', '?')})" for letter, one in (("A", a), ("B", b))]
    counts = f"{len(a.labels):,} images, {a.scores.shape[1]:,} classes; scores: averaged {a.average}."
    return "\n".join([*lines, " ".join([counts, *differing(comparison)])])


def _markdown(comparison: Comparison, tables: Sequence[Block]) -> str:
    head = "".join(f"- {markdown_text(line)}\n" for line in _head(comparison).splitlines())
    title = f"# A and B: {markdown_text(_name(comparison))}\n"
    return "\n".join([title, head, *(table.markdown(MARKDOWN_ROWS) for table in tables)])


def _file_pairs(a: str, b: str) -> list[tuple[Path, Path]]:
    """The files of both inputs that have the same name, or the two files if each input has one.

    Raises UserError if no name is common: comparing different protocols must be asked for by naming the files.
    """
    files_a, files_b = ({path.name: path for path in score_files(one, key="compare")} for one in (a, b))
    # Two named files may be of different protocols: whoever names them asks for this comparison.
    if Path(a).is_file() and Path(b).is_file():
        return [(Path(a), Path(b))]
    # In the order of A's files; a protocol that only one of the two has is left out.
    common = [(files_a[name], files_b[name]) for name in files_a if name in files_b]
    if not common:
        has = [f"{one} has {', '.join(files)}" for one, files in ((a, files_a), (b, files_b))]
        raise UserError(
            f"compare=[{a},{b}]: no score file has the same name in both ({'; '.join(has)}); evaluate one again, or"
            " name two files"
        )
    return common


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _signed(fraction: float) -> str:
    """A difference of fractions, in percentage points."""
    return f"{100 * fraction:+.2f}".replace("-", "−")  # U+2212, as in the error table

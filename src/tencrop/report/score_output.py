"""report.py scores=...: prints the statistics of score files, and writes them as Markdown, CSV and plots."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tencrop.config import UserError
from tencrop.config.writable import check_writable
from tencrop.files import atomic_write
from tencrop.printable import markdown_text, printable
from tencrop.report.blocks import Block, print_paragraphs
from tencrop.report.reliability import reliability_svg
from tencrop.report.score_report import (
    ScoreReport,
    calibration_block,
    class_block,
    confusion_block,
    error_block,
    score_report,
)
from tencrop.report.score_sources import read_saved, score_files
from tencrop.text_tables import csv_table

MARKDOWN, CLASSES, CONFUSED = "scores.md", "scores-classes.csv", "scores-confused.csv"
CALIBRATION = "scores-calibration.csv"
MARKDOWN_ROWS = 50


def report_scores(
    inputs: Sequence[str], *, average: str, ks: Sequence[int], output: Path, data_root: str | None = None
) -> int:
    """Print the statistics of every score file in `inputs`, and write all of them to the folder `output`.

    inputs: score files, run folders, or folders of evaluate.py. data_root: prepared data that names the classes of
    score files outside run folders. A file that cannot be read is left out and named at the end. Returns the exit code.
    Raises UserError if no file can be read.
    """
    # Found and checked for every input before the first file is read, which takes 1.2 s of processor time each.
    paths = [path for one in inputs for path in score_files(one, key="scores")]
    check_writable(output / MARKDOWN, remedy="make room, or name another folder with output=DIR")
    reports, broken = list[ScoreReport](), list[UserError]()
    for path in paths:
        try:
            reports.append(score_report(read_saved(path, average, data_root=data_root), ks))
        except UserError as error:
            broken.append(error)
    if not reports:
        raise broken[0]
    for report in reports:
        head = f"{printable(str(report.path))}\n{report.about}"
        print_paragraphs([head, *(block.terminal() for block in _blocks(report, output))])
    print_paragraphs(["\n".join(map(str, _write(reports, output)))])
    for refusal in broken:  # after the tables, where it is not scrolled away
        print(printable(f"error: left out: {refusal}"), file=sys.stderr)
    return 2 if broken else 0


def _blocks(report: ScoreReport, output: Path) -> list[Block]:
    return [
        error_block(report),
        calibration_block(report),
        class_block(report, more_in=str(output / CLASSES)),
        confusion_block(report, more_in=str(output / CONFUSED)),
    ]


def _write(reports: Sequence[ScoreReport], output: Path) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)
    # Numbered, because every run has a center.safetensors.
    plots = [output / f"reliability-{number}-{one.path.stem}.svg" for number, one in enumerate(reports, start=1)]
    # One file for all inputs, with a column that tells the score file: a spreadsheet can filter it.
    contents = {
        MARKDOWN: "\n".join(_markdown(report, plot, output) for report, plot in zip(reports, plots, strict=True)),
        CLASSES: _classes_csv(reports),
        CONFUSED: _confused_csv(reports),
        CALIBRATION: _calibration_csv(reports),
    }
    for name, content in contents.items():
        atomic_write(output / name, printable(content).encode())
    for report, plot in zip(reports, plots, strict=True):
        atomic_write(plot, reliability_svg(report.calibration))
    return [*(output / name for name in contents), *plots]


def _markdown(report: ScoreReport, plot: Path, output: Path) -> str:
    texts = [f"# {markdown_text(str(report.path))}\n", f"{markdown_text(report.about)}\n"]
    texts += [block.markdown(MARKDOWN_ROWS) for block in _blocks(report, output)]
    return "\n".join([*texts, f"![Reliability]({plot.name})\n"])


def _classes_csv(reports: Sequence[ScoreReport]) -> str:
    head = ("scores", "label", "class", "images", "errors", "error_percent", "taken_for", "times")
    rows = []
    for report in reports:
        path, names = report.path, report.names
        for label, rate, answer, times in report.classes:
            # The count beside the rate: in a class of 50 images, one image is 2 percent.
            errors = (rate.num_images, rate.num_errors, f"{100 * rate.fraction:.4f}")
            rows.append((path, label, names[label], *errors, "" if answer is None else names[answer], times))
    return csv_table(head, rows)


def _confused_csv(reports: Sequence[ScoreReport]) -> str:
    rows = []
    for report in reports:
        path, names = report.path, report.names
        rows += [(path, label, names[label], answer, names[answer], num) for label, answer, num in report.confused]
    return csv_table(("scores", "label", "class", "taken_for_label", "taken_for", "images"), rows)


def _calibration_csv(reports: Sequence[ScoreReport]) -> str:
    rows = []
    for report in reports:
        for low, high, num_images, *means in report.calibration.bins:
            ends = (f"{low:.6f}", f"{high:.6f}")
            rows.append((report.path, *ends, num_images, *(f"{mean:.6f}" for mean in means)))
    return csv_table(("scores", "above", "up_to", "images", "mean_confidence", "accuracy"), rows)

"""The error table: what the paper printed, what was measured, by how much they differ. Terminal, Markdown, HTML.

Percent errors throughout. Called by the verbs (terminal) and by page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tencrop.console import plain_console
from tencrop.evaluation.claims import is_claimed
from tencrop.evaluation.errors import OverSeeds, over_seeds, wilson_interval
from tencrop.printable import markdown_text, printable
from tencrop.report.collect import TOP, Broken, Evaluation, Experiment, Result, Run

COLUMNS = ("experiment", "protocol", "error", "paper", "ours", "difference", "95% interval", "images", "seeds", "note")
NOT_RUN = "not run"
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One top-k error of an experiment under a protocol; percent."""

    experiment: str
    protocol: str
    k: int
    published: float | None
    measured: OverSeeds | None  # None: not run
    interval: tuple[float, float] | None
    num_images: int | None
    note: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, one cell for each of COLUMNS."""
        measured, paper = self.measured, self.published
        return (
            self.experiment,
            self.protocol,
            f"top-{self.k}",
            NONE if paper is None else f"{paper:g}",
            NOT_RUN if measured is None else _over_seeds(measured),
            NONE if measured is None or paper is None else f"{measured.mean - paper:+.2f}".replace("-", "−"),
            NONE if self.interval is None else f"{self.interval[0]:.2f} – {self.interval[1]:.2f}",
            NONE if self.num_images is None else f"{self.num_images:,}",
            NONE if measured is None else str(measured.n),
            self.note,
        )

    @property
    def about(self) -> str:
        """What the rows of a protocol share: images, seeds, note."""
        images = "" if self.num_images is None else f"{self.num_images:,} images"
        seeds = "" if self.measured is None or self.measured.n == 1 else f"{self.measured.n} seeds, mean ± s.d."
        return " · ".join(fact for fact in (images, seeds, self.note) if fact)


def error_rows(experiments: Sequence[Experiment], evaluations: Sequence[Evaluation] = ()) -> list[Row]:
    """The rows of all experiments: the claimed protocol first, "not run" where it was not evaluated. Behind them the
    evaluations that belong to no run, marked so and beside no published number.

    Over seeds: mean and sample standard deviation with n; the interval is Wilson's at the mean error for the number
    of test images, which are the same for all seeds.
    """
    rows = [row for experiment in experiments for row in _rows(experiment)]
    for one in evaluations:
        note = f"of no run folder: {one.folder.parent.name}/{one.folder.name}"
        rows += [_row(one.name, k, [one.result], published=None, note=note, protocol=one.result.title) for k in TOP]
    return rows


def print_table(rows: Sequence[Row], console: Console | None = None, *, broken: Sequence[Broken] = ()) -> None:
    """The table on the terminal; fits 80 columns. Below it what is broken."""
    console = console or plain_console()
    lines = [("percent", *COLUMNS[3:7]), *(row.cells[2:7] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    before: tuple[str, str] | None = None
    console.print(Text(f"  {aligned[0]}", "dim"), soft_wrap=True)
    for row, line in zip(rows, aligned[1:], strict=True):
        if before != (before := (row.experiment, row.protocol)):
            console.print(
                Text.assemble((printable(row.experiment), "bold"), f"  {row.protocol}  ", (row.about, "dim")),
                soft_wrap=True,
            )
        console.print(Text(f"  {line}"), soft_wrap=True)
    for one in broken:
        console.print(Text.assemble((printable(one.name), "bold"), f"  {printable(one.reason)}"), soft_wrap=True)


def markdown_table(rows: Sequence[Row], *, broken: Sequence[Broken] = ()) -> str:
    """The table in Markdown; what is broken has a row without numbers."""
    alignment = [":--" if column in ("experiment", "protocol", "note") else "--:" for column in COLUMNS]
    without_numbers = [NONE] * (len(COLUMNS) - 2)
    lines = [COLUMNS, alignment, *(row.cells for row in rows)]
    lines += [(one.name, *without_numbers, one.reason) for one in broken]
    return "".join("| " + " | ".join(markdown_text(cell) for cell in line) + " |\n" for line in lines)


def html_table(rows: Sequence[Row], *, broken: Sequence[Broken] = ()) -> str:
    """The table in HTML: a group of rows for each experiment and protocol, six narrow columns; last what is broken."""
    head = "".join(f"<th scope=col>{column}</th>" for column in ("", "Paper", "Ours", "Difference", "95% interval"))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.experiment, row.protocol), []).append(row)
    bodies = "".join(_html_group(*group) for group in groups.items()) + "".join(map(_html_broken, broken))
    return f"<table class=errors><thead><tr>{head}</tr></thead>{bodies}</table>"


def _rows(experiment: Experiment) -> list[Row]:
    claim = experiment.claim
    ordered = sorted(_groups(experiment), key=lambda members: (not _is_claimed(experiment, members), _title(members)))
    if claim and not any(_is_claimed(experiment, members) for members in ordered):
        rows = _rows_not_run(experiment, claim["protocol"])
    else:
        rows = [] if ordered else _rows_not_run(experiment, experiment.runs[0].config["protocol"]["name"])
    for members in ordered:
        results, note = [result for _, result in members], _note(experiment, [run for run, _ in members])
        for k in TOP:
            published = _published(claim, k) if _is_claimed(experiment, members) else None
            rows.append(_row(experiment.name, k, results, published=published, note=note, protocol=_title(members)))
    return rows


def _groups(experiment: Experiment) -> list[list[tuple[Run, Result]]]:
    """The results that are one number over seeds: measured in one way, of every run one.

    Of a run that was evaluated so at several checkpoints, while it trained, it is the latest.
    """
    groups: dict[tuple[str, str], dict[Path, tuple[Run, Result]]] = {}
    for run in experiment.runs:
        for result in sorted(run.valid_results, key=lambda result: result.facts.get("step") or 0):
            key = run.title_of(result), result.source_fingerprint
            groups.setdefault(key, {})[run.folder] = run, result
    return [list(group.values()) for group in groups.values()]


def _title(members: Sequence[tuple[Run, Result]]) -> str:
    run, result = members[0]
    return run.title_of(result)


def _is_claimed(experiment: Experiment, members: Sequence[tuple[Run, Result]]) -> bool:
    """Whether the claim is about results as these, all of whole trainings."""
    recipe = experiment.recipe
    return recipe is not None and all(run.is_complete and is_claimed(one.facts, recipe) for run, one in members)


def _rows_not_run(experiment: Experiment, protocol: str) -> list[Row]:
    note = _note(experiment, [])
    return [Row(experiment.name, protocol, k, _published(experiment.claim, k), None, None, None, note) for k in TOP]


def _row(name: str, k: int, results: Sequence[Result], *, published: float | None, note: str, protocol: str) -> Row:
    measured = over_seeds([100 * result.errors[k] for result in results])
    num_images = results[0].num_images
    low, high = wilson_interval(measured.mean / 100 * num_images, num_images)
    return Row(name, protocol, k, published, measured, (100 * low, 100 * high), num_images, note)


def _published(claim: dict[str, Any] | None, k: int) -> float | None:
    return claim[f"top{k}_error"] if claim else None


def _note(experiment: Experiment, runs: list[Run]) -> str:
    notes = []
    if unfinished := sum(not run.is_complete for run in runs or experiment.runs):
        notes.append("unfinished" if len(experiment.runs) == 1 else f"{unfinished} unfinished")
    if runs and len(runs) < len(experiment.runs):
        notes.append(f"{len(runs)} of {len(experiment.runs)} runs evaluated")
    return ", ".join(notes)


def _over_seeds(measured: OverSeeds) -> str:
    if measured.std is None:
        return f"{measured.mean:.2f}"
    return f"{measured.mean:.2f} ± {measured.std:.2f}"


def _html_group(key: tuple[str, str], rows: list[Row]) -> str:
    experiment, protocol = key
    head = f"<b>{escape(experiment)}</b> {escape(protocol)} <small>{escape(rows[0].about)}</small>"
    body = "".join(_html_row(row) for row in rows)
    return f"<tbody><tr><th colspan=5 scope=rowgroup>{head}</th></tr>{body}</tbody>"


def _html_broken(one: Broken) -> str:
    head = f"<b>{escape(one.name)}</b> <small>{escape(one.reason)}</small>"
    return f"<tbody><tr><th colspan=5 scope=rowgroup>{head}</th></tr></tbody>"


def _html_row(row: Row) -> str:
    error, paper, ours, difference, interval = row.cells[2:7]
    missing = " class=missing" if row.measured is None else ""
    return (
        f"<tr><th scope=row>{error}</th><td>{paper}</td><td{missing}><b>{escape(ours)}</b></td>"
        f"<td>{difference}</td><td>{interval}</td></tr>"
    )

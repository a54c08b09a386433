"""The error table: the paper's error, ours, and their difference, for the terminal, in Markdown and in HTML.

All errors are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from tencrop.console import plain_console
from tencrop.evaluation.errors import OverSeeds, over_seeds, wilson_interval
from tencrop.printable import printable
from tencrop.report.claims import Claim
from tencrop.report.collect import TOP, Broken, Evaluation, Experiment, Result, Run, results_by_classes
from tencrop.report.templating import render
from tencrop.text_tables import aligned
from tencrop.text_tables import markdown_table as rows_as_markdown

COLUMNS = ("experiment", "protocol", "error", "paper", "ours", "difference", "95% interval", "images", "seeds", "note")
NOT_RUN = "not run"
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One top-k error of an experiment under a protocol, in percent."""

    experiment: str
    protocol: str
    k: int
    published: str | None  # as printed, in percent
    measured: OverSeeds | None  # None: not evaluated yet
    interval: tuple[float, float] | None
    num_images: int | None
    note: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, one cell for each of COLUMNS."""
        # U+2212 for the sign of a difference, as papers print it; a hyphen is easily lost beside a number
        measured, paper = self.measured, self.published
        return (
            self.experiment,
            self.protocol,
            f"top-{self.k}",
            NONE if paper is None else paper,
            NOT_RUN if measured is None else _over_seeds(measured),
            NONE if measured is None or paper is None else f"{measured.mean - float(paper):+.2f}".replace("-", "−"),
            NONE if self.interval is None else f"{self.interval[0]:.2f} – {self.interval[1]:.2f}",
            NONE if self.num_images is None else f"{self.num_images:,}",
            NONE if measured is None else str(measured.n),
            self.note,
        )

    @property
    def about(self) -> str:
        """What both rows of a protocol share: number of images and seeds, and the note."""
        images = "" if self.num_images is None else f"{self.num_images:,} images"
        seeds = "" if self.measured is None or self.measured.n == 1 else f"{self.measured.n} seeds, mean ± s.d."
        return " · ".join(fact for fact in (images, seeds, self.note) if fact)


def error_rows(experiments: Sequence[Experiment], evaluations: Sequence[Evaluation] = ()) -> list[Row]:
    """The rows of all experiments, then those of results outside run folders.

    The claimed protocol comes first, as "not run" if it was not evaluated. Results outside run folders are marked and
    never compared with a published error. Over seeds a row has the mean and the sample standard deviation.
    """
    rows = [row for experiment in experiments for row in _rows(experiment)]
    for one in evaluations:
        # without a run's configuration nothing tells how these weights were trained, so no claim is theirs
        note = f"of no run folder: {one.folder.parent.name}/{one.folder.name}"
        for result in results_by_classes(one.result):
            rows += [_row(one.name, k, [result], published=None, note=note, protocol=result.title) for k in TOP]
    return rows


def print_table(rows: Sequence[Row], console: Console | None = None, *, broken: Sequence[Broken] = ()) -> None:
    """The table on the terminal, in at most 80 columns, followed by what could not be read."""
    console = console or plain_console()
    # Names and notes may have any length, so they get a line of their own; only the numbers are in columns.
    head, *lines = aligned([("percent", *COLUMNS[3:7]), *(row.cells[2:7] for row in rows)])
    before: tuple[str, str] | None = None
    console.print(Text(f"  {head}", "dim"), soft_wrap=True)
    for row, line in zip(rows, lines, strict=True):
        if before != (before := (row.experiment, row.protocol)):
            console.print(
                Text.assemble((printable(row.experiment), "bold"), f"  {row.protocol}  ", (row.about, "dim")),
                soft_wrap=True,
            )
        console.print(Text(f"  {line}"), soft_wrap=True)
    for one in broken:
        console.print(Text.assemble((printable(one.name), "bold"), f"  {printable(one.reason)}"), soft_wrap=True)


def markdown_table(rows: Sequence[Row], *, broken: Sequence[Broken] = ()) -> str:
    """The table in Markdown; what could not be read has a row without numbers."""
    left = [number for number, column in enumerate(COLUMNS) if column in ("experiment", "protocol", "note")]
    without_numbers = [NONE] * (len(COLUMNS) - 2)
    lines = [*(row.cells for row in rows), *((one.name, *without_numbers, one.reason) for one in broken)]
    return rows_as_markdown(COLUMNS, lines, left=left)


def html_table(rows: Sequence[Row], *, broken: Sequence[Broken] = ()) -> Markup:
    """The table in HTML: a group of rows for each experiment and protocol, then what could not be read.

    Experiment, protocol and note head the group rather than each row: five narrow columns fit a telephone.
    """
    groups: dict[tuple[str, str], list[Row]] = {}  # in order of appearance; itertools.groupby would need them sorted
    for row in rows:
        groups.setdefault((row.experiment, row.protocol), []).append(row)
    return render("error_table.html", groups=list(groups.items()), broken=broken)


def _rows(experiment: Experiment) -> list[Row]:
    claims = {_title(members): _claim_of(experiment, members) for members in _groups(experiment)}
    ordered = sorted(_groups(experiment), key=lambda members: (claims[_title(members)] is None, _title(members)))
    protocol = experiment.runs[0].config["protocol"]["name"]
    own = [claim for claim in experiment.claims if claim.row.protocol and claim.row.protocol.name == protocol]
    # A claim whose protocol was not run keeps its row: leaving it out would hide that the paper's number is missing.
    if experiment.claims and not any(claims.values()):
        rows = _rows_not_run(experiment, (own or experiment.claims)[0])
    else:
        rows = [] if ordered else _rows_not_run(experiment, None)
    for members in ordered:
        results, note = [result for _, result in members], _note(experiment, [run for run, _ in members])
        claim = claims[_title(members)]
        for k in TOP:
            published = None if claim is None else claim.error_text(k)
            rows.append(_row(experiment.name, k, results, published=published, note=note, protocol=_title(members)))
    return rows


def _groups(experiment: Experiment) -> list[list[tuple[Run, Result]]]:
    """Groups of results that are averaged over seeds: one result per run, all measured the same way.

    Of several results of one run, as of a run that is evaluated while it trains, the latest checkpoint's is taken.
    """
    # source_fingerprint is part of the key: errors on different test images must not be averaged
    groups: dict[tuple[str, str], dict[Path, tuple[Run, Result]]] = {}
    for run in experiment.runs:
        # later steps overwrite earlier ones; results of earlier versions have no step and come first
        for result in sorted(run.valid_results, key=lambda result: result.facts.get("step") or 0):
            for part in results_by_classes(result):
                key = run.title_of(part), part.source_fingerprint
                groups.setdefault(key, {})[run.folder] = run, part
    return [list(group.values()) for group in groups.values()]


def _title(members: Sequence[tuple[Run, Result]]) -> str:
    run, result = members[0]
    return run.title_of(result)


def _claim_of(experiment: Experiment, members: Sequence[tuple[Run, Result]]) -> Claim | None:
    """The row of conf/errors that all these results support; the most reliable one of several."""
    supported = (claim for claim in experiment.claims if all(claim.is_supported_by(*member) for member in members))
    return next(supported, None)


def _rows_not_run(experiment: Experiment, claim: Claim | None) -> list[Row]:
    """Rows without a number of ours: of a claim, or of the configured protocol."""
    note, protocol = _note(experiment, []), experiment.runs[0].config["protocol"]["name"]
    if claim is not None and claim.row.protocol is not None:
        protocol = claim.row.protocol.name or protocol
    printed = [None if claim is None else claim.error_text(k) for k in TOP]
    return [
        Row(experiment.name, protocol, k, text, None, None, None, note) for k, text in zip(TOP, printed, strict=True)
    ]


def _row(name: str, k: int, results: Sequence[Result], *, published: str | None, note: str, protocol: str) -> Row:
    measured = over_seeds([100 * result.errors[k] for result in results])
    num_images = results[0].num_images
    # Wilson's interval at the mean error for the images of one seed. All seeds are tested on the same images: counting
    # n times as many trials would make the interval too narrow by the square root of n.
    low, high = wilson_interval(measured.mean / 100 * num_images, num_images)
    return Row(name, protocol, k, published, measured, (100 * low, 100 * high), num_images, note)


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

"""The page's section on saved scores: errors at any k, by class, confused classes, and the reliability plot."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tencrop.config import UserError
from tencrop.printable import markdown_text, printable
from tencrop.report.collect import Broken, Evaluation, Experiment, Result, Run
from tencrop.report.reliability import reliability_svg
from tencrop.report.score_report import (
    ScoreReport,
    calibration_block,
    class_block,
    confusion_block,
    error_block,
    score_report,
)
from tencrop.report.score_sources import read_saved
from tencrop.report.templating import render

TITLE = "Errors by class, and calibration"
ALL_CLASSES = "the CSV files of report.py scores=..."


@dataclass(frozen=True)
class ScoreSection:
    """The statistics of one result, under the name of its experiment or weights."""

    name: str
    title: str  # of the result: protocol and average
    report: ScoreReport


def score_sections(
    experiments: Sequence[Experiment],
    evaluations: Sequence[Evaluation],
    *,
    ks: Sequence[int],
    on_broken: Callable[[Broken], None],
) -> list[ScoreSection]:
    """A section for the first seed of each experiment and for each result outside run folders.

    Results without a score file are left out, and so are broken score files, which are passed to `on_broken`.
    """
    shown: list[tuple[str, Result, Path]] = []
    for experiment in experiments:
        # The other seeds differ in noise. report.py scores=RUN shows any of them.
        run = experiment.runs[0]
        if (result := shown_result(run)) is not None:
            seed = f", seed {run.seed}" if len(experiment.runs) > 1 else ""
            shown.append((f"{experiment.name}{seed}", result, run.folder))
    shown += [(one.name, one.result, one.folder) for one in evaluations]
    sections = []
    for name, result, folder in shown:
        try:
            report = _report(result, ks)
        except UserError as error:
            on_broken(Broken(folder, error))
            continue
        # A result without its score file is complete for the error table and is not reported as broken.
        if report is not None:
            sections.append(ScoreSection(name, result.title, report))
    return sections


def shown_result(run: Run) -> Result | None:
    """The result whose scores the page shows: the configured protocol's, else the first."""
    wanted = run.config["protocol"]["name"]
    # False sorts first: the last epoch's weights are what the table reports.
    return min(
        run.valid_results,
        key=lambda result: (result.is_best, result.protocol != wanted, result.title),
        default=None,
    )


def section_html(section: ScoreSection) -> Markup:
    """The plot beside the errors, and the tables of classes."""
    report = section.report
    # An <img> with its own document, as in curves.py: matplotlib's ids would collide within one page.
    url = f"data:image/svg+xml;base64,{base64.b64encode(reliability_svg(report.calibration)).decode()}"
    return render(
        "score_section.html",
        section=section,
        url=url,
        sentence=report.calibration_sentence,
        errors=error_block(report).html(),
        classes=class_block(report, more_in=ALL_CLASSES).html(),
        confused=confusion_block(report, more_in=ALL_CLASSES).html(),
    )


def section_markdown(section: ScoreSection) -> str:
    """The same tables, with the bins of the plot as numbers."""
    report = section.report
    blocks = [error_block(report), calibration_block(report), class_block(report), confusion_block(report)]
    head = f"### {markdown_text(printable(section.name))}, {markdown_text(section.title)}\n"
    return "\n".join([head, *(block.markdown() for block in blocks)])


def _report(result: Result, ks: Sequence[int]) -> ScoreReport | None:
    """The statistics of a result; None if its score file is gone, or now has the scores of other weights."""
    if not result.scores.is_file():
        return None
    saved = read_saved(result.scores, result.average)
    # softmax and logit averages share one file, so a later evaluation may have replaced this result's scores
    if saved.metadata.get("weights_sha256", result.weights_sha256) != result.weights_sha256:
        return None
    return score_report(saved, ks)

"""Writes report.html and report.md for one run or many.

The HTML page is one file that loads nothing: style, pictures and charts are within it, so that it can be mailed or
archived beside a paper. All text is escaped. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import yaml
from markupsafe import Markup

from tencrop.files import atomic_write
from tencrop.printable import markdown_text, printable
from tencrop.records.manifest import Code, Hardware, RunData, Session
from tencrop.records.provenance import sessions_of
from tencrop.report.collect import Broken, Evaluation, Experiment, Run
from tencrop.report.comparisons import draw_comparisons
from tencrop.report.curves import curves
from tencrop.report.figure_html import run_figures, saved_figure
from tencrop.report.figures import kernel_figure, panel_figure
from tencrop.report.score_section import TITLE as SCORES
from tencrop.report.score_section import ScoreSection, section_html, section_markdown, shown_result
from tencrop.report.tables import Row, error_rows, html_table, markdown_table
from tencrop.report.templating import render

PACKAGES = ("python", "torch", "pytorch-lightning", "timm", "torchvision", "ffcv", "numpy")  # that can change a number
OUTSIDE_RUNS = "Evaluated outside run folders"
PAPER_TABLES = "Papers' tables"
INTERVAL = (
    "Errors in percent. The interval is the 95% Wilson interval for the number of test images; over several seeds it is"
    " taken at the mean error, and ± is the sample standard deviation. Weights of the last epoch unless marked."
)


def write_report(
    experiments: Sequence[Experiment],
    folder: Path,
    evaluations: Sequence[Evaluation] = (),
    *,
    broken: Sequence[Broken] = (),
    scores: Sequence[ScoreSection] = (),
    paper_tables: Sequence[Markup] = (),
) -> tuple[Path, Path]:
    """Write report.html, report.md and, for several experiments, figures/ into `folder`; returns the first two paths.

    broken: run folders and results that could not be read; the table lists them. scores: statistics of saved scores.
    paper_tables: papers' error tables in HTML; the Markdown page leaves them out, as table=NAME writes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = error_rows(experiments, evaluations)
    # also saved as files: Markdown cannot embed them, and papers and slides take them from there
    figures = draw_comparisons(experiments, evaluations, folder / "figures")
    html, markdown = folder / "report.html", folder / "report.md"
    # A class folder's name need not be UTF-8; `encode` would raise on it after all the work is done.
    page = html_page(experiments, rows, figures, evaluations, broken, scores, paper_tables)
    atomic_write(html, printable(page).encode())
    atomic_write(markdown, printable(markdown_page(experiments, rows, figures, evaluations, broken, scores)).encode())
    return html, markdown


def html_page(
    experiments: Sequence[Experiment],
    rows: Sequence[Row],
    figures: Sequence[Path],
    evaluations: Sequence[Evaluation],
    broken: Sequence[Broken],
    scores: Sequence[ScoreSection] = (),
    paper_tables: Sequence[Markup] = (),
) -> str:
    """The page as text; `figures` are the SVG files that compare experiments."""
    title = experiments[0].name if len(experiments) == 1 else _counted(len(experiments), "experiment")
    # versions of tencrop that began the runs, not the one that writes the page: the same runs give the same bytes
    versions = sorted({run.manifest["tencrop"] for experiment in experiments for run in experiment.runs})
    num_runs = sum(len(experiment.runs) for experiment in experiments)
    about = f"{_counted(num_runs, 'run')} · tencrop {', '.join(versions)}"
    page = render(
        "page.html",
        title=title,
        about=about,
        error_table=html_table(rows, broken=broken),
        interval=INTERVAL,
        paper_tables_title=PAPER_TABLES,
        paper_tables=paper_tables,
        comparisons=[saved_figure(path) for path in figures],
        sections=[_section(experiment) for experiment in experiments],
        evaluations=[_evaluation_facts(evaluation) for evaluation in evaluations],
        outside_runs=OUTSIDE_RUNS,
        scores_title=SCORES,
        scores=[section_html(section) for section in scores],
    )
    return f"{page}\n"


def markdown_page(
    experiments: Sequence[Experiment],
    rows: Sequence[Row],
    figures: Sequence[Path],
    evaluations: Sequence[Evaluation],
    broken: Sequence[Broken],
    scores: Sequence[ScoreSection] = (),
) -> str:
    """The error table, links to the figures, and the facts of every run, in Markdown."""
    parts = ["# Error table\n", markdown_table(rows, broken=broken), f"{INTERVAL}\n"]
    # Links, since Markdown cannot embed: figures/ must be copied along with report.md.
    parts += [f"![{path.stem}]({path.parent.name}/{path.name})\n" for path in figures]
    for experiment in experiments:
        facts = [f"{name}: {value}" for name, value in _facts(experiment)]
        facts += [
            "seed {}: {}, weights {}, sessions {}, {}".format(run.seed, *_run_facts(run)) for run in experiment.runs
        ]
        parts.append(f"## {markdown_text(experiment.name)}\n")
        parts.append("".join(f"- {markdown_text(fact)}\n" for fact in facts))
    if evaluations:
        lines = [markdown_text(", ".join(_evaluation_facts(one))) for one in evaluations]
        parts.append(f"## {OUTSIDE_RUNS}\n\n" + "".join(f"- {line}\n" for line in lines))
    if scores:
        parts += [f"## {SCORES}\n", *map(section_markdown, scores)]
    return "\n".join(parts)


def _section(experiment: Experiment) -> Markup:
    """All of an experiment below the table. Pictures are of its first seed: those of the others look alike."""
    run = experiment.runs[0]
    result = shown_result(run)
    return render(
        "experiment.html",
        name=experiment.name,
        charts=curves(experiment),
        held_out="minival" if any(row["split"] == "minival" for row in run.metrics) else "test",
        seed=Markup("<small>seed {}</small>").format(run.seed) if len(experiment.runs) > 1 else "",
        kernels=kernel_figure(run),
        panel=panel_figure(run, result) if result else None,
        visualizations=run_figures(run),
        facts=_facts(experiment),
        runs=[(str(run.seed), *_run_facts(run)) for run in experiment.runs],
        config=yaml.safe_dump(run.config, sort_keys=False),
    )


def _evaluation_facts(evaluation: Evaluation) -> tuple[str, ...]:
    """Name, protocol, hash of the weights, folder, weights files."""
    result, folder = evaluation.result, evaluation.folder
    files = result.facts["checkpoint"]
    hashes = " + ".join(part[:12] for part in result.weights_sha256.split(" + "))
    # two levels of the path, here and below: enough to find a run, and the column stays narrow
    location = f"{folder.parent.name}/{folder.name}"
    return evaluation.name, result.title, hashes, location, files if isinstance(files, str) else " + ".join(files)


def _facts(experiment: Experiment) -> list[tuple[str, str]]:
    """Name and value of what the runs of an experiment share, taken from the first run."""
    run = experiment.runs[0]
    manifest, claims = run.manifest, experiment.claims
    session = manifest["sessions"][0]  # the one that began the run; resuming may have changed the machine
    facts = [
        ("Command", session["command"]),
        ("Code", _code(session["code"])),
        ("Data", _data(manifest["data"])),
        ("Hardware", _hardware(session["hardware"])),
        ("Packages", _packages(sessions_of(manifest))),
        ("Seeds", ", ".join(str(run.seed) for run in experiment.runs)),
        ("Started", session["started"]),
    ]
    return facts + ([("Published", "; ".join(dict.fromkeys(claim.source for claim in claims)))] if claims else [])


def _packages(sessions: Sequence[Session]) -> str:
    """Name and version of each of PACKAGES; "2.14.0, then 2.15.0" where the run was resumed with another version."""
    # "none": a package that this run did not have installed, as ffcv, which is optional
    # A run that was resumed after an update has weights that neither version alone gives.
    versions = {name: [one["packages"].get(name, "none") for one in sessions] for name in PACKAGES}
    texts = {name: ", then ".join(version for version, _ in groupby(found)) for name, found in versions.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items() if text != "none")


def _run_facts(run: Run) -> tuple[str, str, str, str]:
    """State, hash of the weights, number of sessions, folder; the table of runs has a column for each."""
    result = run.manifest["result"]
    state = result["status"]
    # Only of unfinished runs: the others are at the end of their recipe.
    if not run.is_complete and run.metrics:
        state += f", {_progress(run)}"
    folder = f"{run.folder.parent.name}/{run.folder.name}"
    return state, (result["weights_sha256"] or "–")[:12], str(len(run.manifest["sessions"])), folder


def _progress(run: Run) -> str:
    row, training = run.metrics[-1], run.config["training"]
    if training["epochs"] is None:  # a budget in steps
        return f"step {row['step']} of {training.get('steps')}"
    return f"epoch {row['epoch']:.4g} of {training['epochs']}"


def _code(code: Code) -> str:
    # Without a git revision the hash over the source files that affect training identifies the code.
    if "not_known" in code:
        return f"not known ({code['not_known']}), stages up to training {code['learning_sha256'][:12]}"
    if "installed" in code:
        return f"installed package, version {code['installed']}, stages up to training {code['learning_sha256'][:12]}"
    if code["revision"] is None:
        return f"outside git, stages up to training {code['learning_sha256'][:12]}"
    return f"{code['revision'][:12]}{', with changes (code.diff)' if code['diff_sha256'] else ''}"


def _data(data: RunData) -> str:
    splits = (
        f"{facts['num_samples']:,} {name} ({facts['source_fingerprint'][:12]})"
        for name, facts in data["splits"].items()
    )
    return f"{data['name']}, {len(data['classes']):,} classes: {', '.join(splits)}"


def _hardware(hardware: Hardware) -> str:
    gpus = hardware["gpus"]
    found = f"{len(gpus)} × {gpus[0]}, " if gpus else ""
    if "not_known" in hardware:
        found = f"not known: {hardware['not_known']}; "
    memory = hardware["memory_bytes"] / 2**30
    return f"{found}{hardware['cpu']}, {_counted(hardware['num_cores'], 'core')}, {memory:.0f} GiB, {hardware['host']}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

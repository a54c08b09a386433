"""One self-contained HTML page, and Markdown, for one run or many. Called by report.py and the quickstart.

Nothing is fetched from anywhere: style, pictures and charts are in the file; all text is escaped. The same runs
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from tencrop.files import atomic_write
from tencrop.printable import markdown_text, printable
from tencrop.records.provenance import sessions_of
from tencrop.report.collect import Broken, Evaluation, Experiment, Result, Run
from tencrop.report.comparisons import draw_comparisons
from tencrop.report.curves import curves
from tencrop.report.figure_html import drawn_figure, seen_figures
from tencrop.report.figures import kernel_figure, panel_figure
from tencrop.report.tables import Row, error_rows, html_table, markdown_table

PACKAGES = ("python", "torch", "pytorch-lightning", "timm", "torchvision", "ffcv", "numpy")
OF_NO_RUN = "Evaluated outside run folders"
INTERVAL = (
    "Errors in percent. The interval is Wilson’s, 95%, for the number of test images; over seeds it is taken at the"
    " mean, and ± is the sample standard deviation. The last epoch’s weights unless marked."
)


def write_report(
    experiments: Sequence[Experiment],
    folder: Path,
    evaluations: Sequence[Evaluation] = (),
    *,
    broken: Sequence[Broken] = (),
) -> tuple[Path, Path]:
    """Write report.html and report.md into `folder`, and figures/ over several experiments; returns both paths.

    broken: what could not be read, which the table marks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = error_rows(experiments, evaluations)
    figures = draw_comparisons(experiments, evaluations, folder / "figures")
    html, markdown = folder / "report.html", folder / "report.md"
    # the name of a class folder need not be UTF-8
    atomic_write(html, printable(html_page(experiments, rows, figures, evaluations, broken)).encode())
    atomic_write(markdown, printable(markdown_page(experiments, rows, figures, evaluations, broken)).encode())
    return html, markdown


def html_page(
    experiments: Sequence[Experiment],
    rows: Sequence[Row],
    figures: Sequence[Path],
    evaluations: Sequence[Evaluation],
    broken: Sequence[Broken],
) -> str:
    """The page as text; `figures` are the SVGs over several experiments."""
    title = experiments[0].name if len(experiments) == 1 else _counted(len(experiments), "experiment")
    versions = sorted({run.manifest["tencrop"] for experiment in experiments for run in experiment.runs})
    num_runs = sum(len(experiment.runs) for experiment in experiments)
    about = f"{_counted(num_runs, 'run')} · tencrop {', '.join(versions)}"
    style = resources.files("tencrop.report").joinpath("page.css").read_text(encoding="utf-8")
    drawn = "".join(drawn_figure(path) for path in figures)
    sections = f"<h2>Compared</h2>\n{drawn}\n" if drawn else ""
    sections += "".join(_section(experiment) for experiment in experiments) + _of_no_run(evaluations)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src"
        " 'unsafe-inline'\">"
        f"<title>{escape(title)} – tencrop</title>\n<style>\n{style}</style>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"
        f"<main><div class=scroll>{html_table(rows, broken=broken)}</div><p class=caption>{INTERVAL}</p>\n"
        f"{sections}</main></html>\n"
    )


def markdown_page(
    experiments: Sequence[Experiment],
    rows: Sequence[Row],
    figures: Sequence[Path],
    evaluations: Sequence[Evaluation],
    broken: Sequence[Broken],
) -> str:
    """Table, figures beside it and facts in Markdown."""
    parts = ["# Error table\n", markdown_table(rows, broken=broken), f"{INTERVAL}\n"]
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
        parts.append(f"## {OF_NO_RUN}\n\n" + "".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


def _section(experiment: Experiment) -> str:
    run = experiment.runs[0]
    drawn = curves(experiment)
    held_out = "minival" if any(row["split"] == "minival" for row in run.metrics) else "test"
    key = f"<span class=key>{held_out}</span><span class='key train'>training</span>"
    result = _shown_result(run)
    seed = f"<small>seed {run.seed}</small>" if len(experiment.runs) > 1 else ""
    panel = panel_figure(run, result) if result else "<p>Not evaluated.</p>"
    return (
        f"<h2>{escape(experiment.name)}</h2>\n"
        + (f"<h3>Training, by epoch {key}</h3><div class=charts>{drawn}</div>\n" if drawn else "<p>Not trained.</p>\n")
        + f"<h3>First layer {seed}</h3>{kernel_figure(run)}\n"
        + f"<h3>Test images {seed}</h3>{panel}\n"
        + (f"<h3>What it sees {seed}</h3>{seen}\n" if (seen := seen_figures(run)) else "")
        + f"<h3>Record</h3>{_record(experiment)}\n"
    )


def _of_no_run(evaluations: Sequence[Evaluation]) -> str:
    """Which weights, of what hash, from which files; empty without any."""
    if not evaluations:
        return ""
    head, lines = ("Weights", "Protocol", "SHA-256", "Folder", "Files"), map(_evaluation_facts, evaluations)
    return f"<h2>{OF_NO_RUN}</h2>\n{_html_list(head, lines)}\n"


def _evaluation_facts(evaluation: Evaluation) -> tuple[str, ...]:
    """Name, protocol, hash of the weights, folder, files."""
    result, folder = evaluation.result, evaluation.folder
    files = result.facts["checkpoint"]
    hashes = " + ".join(part[:12] for part in result.weights_sha256.split(" + "))
    place = f"{folder.parent.name}/{folder.name}"
    return evaluation.name, result.title, hashes, place, files if isinstance(files, str) else " + ".join(files)


def _html_list(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    titles = "".join(f"<th scope=col>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<div class='scroll runs'><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"


def _shown_result(run: Run) -> Result | None:
    """The result whose scores the panel shows: of the protocol claimed or configured, else the first."""
    results = run.valid_results
    claim: dict[str, Any] = run.config.get("claim") or {}
    wanted = (claim.get("protocol"), run.config["protocol"]["name"])
    return min(
        results,
        key=lambda result: (
            result.is_best,
            wanted.index(result.protocol) if result.protocol in wanted else len(wanted),
            result.title,
        ),
        default=None,
    )


def _record(experiment: Experiment) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(experiment))
    runs = ((str(run.seed), *_run_facts(run)) for run in experiment.runs)
    config = escape(yaml.safe_dump(experiment.runs[0].config, sort_keys=False))
    return (
        f"<dl>{facts}</dl>"
        f"{_html_list(('Seed', 'State', 'Weights', 'Sessions', 'Folder'), runs)}"
        f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
    )


def _facts(experiment: Experiment) -> list[tuple[str, str]]:
    """What the runs of an experiment share, from the first one."""
    run = experiment.runs[0]
    manifest, claim = run.manifest, experiment.claim
    session = manifest["sessions"][0]
    facts = [
        ("Command", session["command"]),
        ("Code", _code(session["code"])),
        ("Data", _data(manifest["data"])),
        ("Hardware", _hardware(session["hardware"])),
        ("Packages", _packages(sessions_of(manifest))),
        ("Seeds", ", ".join(str(run.seed) for run in experiment.runs)),
        ("Started", session["started"]),
    ]
    return facts + ([("Published", f"{claim['source']} ({claim['split']}, {claim['protocol']})")] if claim else [])


def _packages(sessions: Sequence[dict[str, Any]]) -> str:
    """Name and version of each of PACKAGES; "2.14.0, then 2.15.0" where a run was continued with another one."""
    versions = {name: [one["packages"].get(name, "none") for one in sessions] for name in PACKAGES}
    texts = {name: ", then ".join(version for version, _ in groupby(found)) for name, found in versions.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items() if text != "none")


def _run_facts(run: Run) -> tuple[str, str, str, str]:
    """State, hash of the weights, number of sessions, folder."""
    result = run.manifest["result"]
    state = result["status"]
    if not run.is_complete and run.metrics:
        state += f", epoch {run.metrics[-1]['epoch']:.4g} of {run.config['training']['epochs']}"
    folder = f"{run.folder.parent.name}/{run.folder.name}"
    return state, (result["weights_sha256"] or "–")[:12], str(len(run.manifest["sessions"])), folder


def _code(code: dict[str, Any]) -> str:
    if "not_known" in code:
        return f"not known ({code['not_known']}), stages up to training {code['learning_sha256'][:12]}"
    if "installed" in code:
        return f"installed package, version {code['installed']}, stages up to training {code['learning_sha256'][:12]}"
    if code["revision"] is None:
        return f"outside git, stages up to training {code['learning_sha256'][:12]}"
    return f"{code['revision'][:12]}{', with changes (code.diff)' if code['diff_sha256'] else ''}"


def _data(data: dict[str, Any]) -> str:
    splits = (
        f"{facts['num_samples']:,} {name} ({facts['source_fingerprint'][:12]})"
        for name, facts in data["splits"].items()
    )
    return f"{data['name']}, {len(data['classes']):,} classes: {', '.join(splits)}"


def _hardware(hardware: dict[str, Any]) -> str:
    gpus = hardware["gpus"]
    found = f"{len(gpus)} × {gpus[0]}, " if gpus else ""
    if "not_known" in hardware:
        found = f"not known: {hardware['not_known']}; "
    memory = hardware["memory_bytes"] / 2**30
    return f"{found}{hardware['cpu']}, {_counted(hardware['num_cores'], 'core')}, {memory:.0f} GiB, {hardware['host']}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

"""HTML of saved figures: those that `python -m tencrop.visualization` drew of a run, and comparisons of experiments."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from tencrop.config import UserError
from tencrop.report.collect import Run
from tencrop.report.templating import render
from tencrop.visualization.record import load_record

ORDER = ("architecture", "receptive_field", "patches", "occlusion", "retrieval", "attention")


def run_figures(run: Run) -> list[Markup]:
    """The figures in a run's folder, each with its title and caption, in the order of ORDER.

    Figures of weights that the run did not end with are left out: it was trained further since. A figure that cannot
    be read is replaced by a sentence that names it.
    """
    # None is the record of a figure without weights: the architecture is the same at every step
    final = {run.manifest["result"][key] for key in ("weights_sha256", "ema_sha256")} | {None}
    paths = [run.folder / "figures" / f"{name}.svg" for name in ORDER]
    # the record is written last (drawing.save_figure), so a figure without one is incomplete
    found = [_figure_or_sentence(path, final) for path in paths if path.with_suffix(".json").exists()]
    return [figure for figure in found if figure is not None]


def _figure_or_sentence(path: Path, final: set[str | None]) -> Markup | None:
    try:
        is_current = load_record(path.with_suffix(".json")).weights_sha256 in final
        return saved_figure(path) if is_current else None
    except UserError as error:  # one bad figure must not cost the page
        return render("sentence.html", text=f"No figure {path.stem} to show: {error}.")


def saved_figure(path: Path) -> Markup:
    """NAME.svg in HTML, with title, caption and command of NAME.json; UserError where either cannot be read."""
    record = load_record(path.with_suffix(".json"))
    try:
        content = path.read_bytes() if path.is_file() else b""
    except PermissionError:
        content = b""
    # records of earlier versions have no digest (None)
    if not content or record.svg_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(
            f"{path}: is missing, or not the figure that was drawn; draw it again (python -m tencrop.visualization)"
        )
    # An SVG may hold scripts. As an <img> it is drawn without running any, inline it would be part of the page.
    url = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return render("figure.html", record=record, url=url)

"""HTML of the figures of a run, with their records, that `python -m tencrop.visualization` drew. Called by page."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from tencrop.config import UserError
from tencrop.report.collect import Run
from tencrop.visualization.record import load_record

ORDER = ("architecture", "receptive_field", "patches", "occlusion", "retrieval", "attention")


def seen_figures(run: Run) -> str:
    """The figures in HTML, each with its title and caption; empty without any.

    Those of weights that the run did not end with are left out: it was trained further. A sentence stands for one that
    cannot be read.
    """
    final = {run.manifest["result"][key] for key in ("weights_sha256", "ema_sha256")} | {None}
    paths = [run.folder / "figures" / f"{name}.svg" for name in ORDER]
    drawn = [path for path in paths if path.with_suffix(".json").exists()]
    return "".join(_figure_of(path, final) for path in drawn)


def _figure_of(path: Path, final: set[str | None]) -> str:
    try:
        is_shown = load_record(path.with_suffix(".json")).weights_sha256 in final
        return drawn_figure(path) if is_shown else ""
    except UserError as error:
        return f"<p>No figure {path.stem} to show: {escape(str(error))}.</p>"


def drawn_figure(path: Path) -> str:
    """NAME.svg in HTML, with title, caption and command of NAME.json; UserError where one cannot be read."""
    record = load_record(path.with_suffix(".json"))
    try:
        content = path.read_bytes() if path.is_file() else b""
    except PermissionError:
        content = b""
    if not content or record.svg_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(
            f"{path}: is missing, or not the figure that was drawn; draw it again (python -m tencrop.visualization)"
        )
    url = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    title, caption = escape(record.title), escape(record.caption)
    command = f" <code>{escape(record.command)}</code>" if record.command else ""
    image = f'<img src="{url}" alt="{title}">'
    return f"<figure class=seen>{image}<figcaption><b>{title}.</b> {caption}{command}</figcaption></figure>"

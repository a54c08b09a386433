"""The figures of a run that `python -m tencrop.seeing` has drawn into its folder, for the page. Called by page."""

from __future__ import annotations

import base64
from html import escape

from tencrop.report.collect import Run
from tencrop.seeing.record import Record, load_record

ORDER = ("architecture", "receptive_field", "patches", "occlusion", "retrieval", "attention")


def seen_figures(run: Run) -> str:
    """The figures in HTML, each with its title and caption; empty without any.

    Those of weights that the run did not end with are left out: it was trained further. Raises UserError for a record
    that cannot be read.
    """
    folder = run.folder / "figures"
    found = {name: load_record(folder / f"{name}.json") for name in ORDER if (folder / f"{name}.json").exists()}
    final = {run.manifest["result"][key] for key in ("weights_sha256", "ema_sha256")} | {None}
    shown = {name: record for name, record in found.items() if record.weights_sha256 in final}
    return "".join(_html((folder / f"{name}.svg").read_bytes(), record) for name, record in shown.items())


def _html(picture: bytes, record: Record) -> str:
    url = f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"
    title, caption = escape(record.title), escape(record.caption)
    image = f'<img src="{url}" alt="{title}">'
    return f"<figure class=seen>{image}<figcaption><b>{title}.</b> {caption}</figcaption></figure>"

"""Style of all figures, and saving them as SVG and PNG with a record of what they show.

Saving the same figure twice gives the same bytes, so that a changed file means a changed figure.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tencrop.files import atomic_write, file_sha256
from tencrop.visualization.record import Record, save_record

PAPER, INK, SOFT, RULE = "#fdfcfa", "#1d1c1a", "#6d6963", "#dfdbd3"  # colors of the report's page
BLUE, ORANGE, GREEN, PURPLE = "#1f5f99", "#c8601a", "#2a8a6d", "#8a5a9e"  # distinguishable to the color-blind
HEAT = "cividis"  # perceptually uniform, and looks the same to the color-blind
STYLE: Any = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
    "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": RULE, "xtick.color": SOFT, "ytick.color": SOFT,
    "axes.titlecolor": INK, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.labelsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9, "font.size": 9, "font.family": "DejaVu Sans",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False, "grid.color": RULE,
    # fonttype none keeps text as text, which can be searched; the salt makes the ids of SVG elements reproducible
    "svg.fonttype": "none", "svg.hashsalt": "tencrop", "path.simplify": True,
}  # fmt: skip
PNG_DPI = 160  # PNG for slides and READMEs; the report embeds the SVG


@contextmanager
def styled() -> Iterator[None]:
    """Context in which matplotlib uses STYLE."""
    with matplotlib.rc_context(STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str, record: Record) -> list[Path]:
    """Write folder/name.svg, .png and, last, .json, each atomically; returns the paths of the two images."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    # matplotlib writes the current date into SVG unless told otherwise
    for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": PNG_DPI})):
        buffer = io.BytesIO()
        with styled():
            figure.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.12, **options)
        paths.append(folder / f"{name}.{kind}")
        atomic_write(paths[-1], buffer.getvalue())
    # written last: a record guarantees that both images exist, and the hash that the SVG is the one described
    svg_sha256 = file_sha256(folder / f"{name}.svg")
    save_record(folder / f"{name}.json", dataclasses.replace(record, svg_sha256=svg_sha256))
    return paths


def titled(figure: Figure, title: str) -> None:
    """Add a title at the upper left, 0.55 inches above the first axes."""
    height = figure.get_size_inches()[1]
    figure.suptitle(title, x=0.125, y=1 - 0.08 / height, ha="left", va="top", weight="bold", size=11)
    figure.subplots_adjust(top=1 - 0.55 / height)


def shortened(name: str, most: int) -> str:
    """Shorten the name to at most `most` characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def bare(axes: Axes) -> None:
    """Remove ticks and frame, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def framed(axes: Axes, color: str, width: float = 2.0) -> None:
    """Remove ticks and draw a colored frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=width)

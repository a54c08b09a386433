"""Charts of top-1 error, loss and learning rate against the epoch, from the rows of metrics.jsonl."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from tencrop.report.templating import render

if TYPE_CHECKING:  # reliability.py imports this module, and needs no runs
    from tencrop.report.collect import Experiment, Run

WIDTH, HEIGHT = 340, 220  # of a chart in CSS pixels: about its size on the page, so that the text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26  # margins in CSS pixels; 7.5e-05 needs 52 at the left
TEXT_PIXELS = 11
TRAIN_COLOR = "#a9b9c9"  # --train of page.css; --test is drawing.BLUE
MAX_POINTS = 250  # of a line; 90 epochs of ImageNet log 22,500 rows, and three lines of 250 points make an SVG of 8 kB
MAX_DECADES = 6  # of a logarithmic axis; a cosine schedule that ends at 1e-20 would flatten all the rest
HELD_OUT = ("val", "minival")
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve of a chart: a metric of one run on one split."""

    points: list[Point]
    kind: str  # train | test; decides the color
    label: str


def curves(experiment: Experiment) -> list[Markup]:
    """Up to three charts as HTML figures, with one line per run and split; none without metrics."""
    both = ("train", *HELD_OUT)
    # Under mixup and CutMix an image has two labels, and the error is counted against the dominant one. It stays far
    # above the test error even for a network that has converged, so the chart must name it.
    is_mixed = any(row.get("labels") == "heavier" for run in experiment.runs for row in run.metrics)
    error = "Top-1 error, percent" + ("; in training against the dominant of two mixed labels" if is_mixed else "")
    # steps of a factor of ten look alike on a logarithmic axis; on a linear one all but the first lie at 0
    is_divided = experiment.runs[0].config["schedule"]["name"] in ("step", "plateau", "exponential")
    charts = (
        _figure(error, _lines(experiment, _percent("top1_error"), both)),
        _figure("Loss", _lines(experiment, _value("loss"), both)),
        _figure("Learning rate", _lines(experiment, _value("lr"), ("train",)), is_log=is_divided),
    )
    return [chart for chart in charts if chart is not None]


def chart_svg(lines: Sequence[Line], *, is_log: bool = False) -> bytes:
    """An SVG of `lines` over epochs; y starts at 0, or is logarithmic over at most MAX_DECADES powers of ten.

    The same lines give the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; a report without metrics does without it
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    from tencrop.visualization.drawing import BLUE, styled

    lines = _on_log_axis(lines) if is_log else lines
    last_epoch = max(x for line in lines for x, _ in line.points)
    ys = [y for line in lines for _, y in line.points]
    # the range ends at a tick, so that the topmost grid line is labeled
    y_ticks = _decades(ys) if is_log else list(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, max(ys) or 1))
    scale = 1 / 72  # SVG output has 72 units an inch, so one unit is one pixel of WIDTH
    # DejaVu Sans comes with matplotlib, but a browser that lacks it would take Times without the second name
    with styled(), rc_context({"font.family": ["DejaVu Sans", "sans-serif"], "font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(WIDTH * scale, HEIGHT * scale))
        # fixed margins: those of tight_layout depend on the tick labels, and charts side by side would not line up
        axes = figure.add_axes(
            (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
        )
        if is_log:
            axes.set_yscale("log")
        for number, line in enumerate(lines):
            xs, values = zip(*line.points, strict=True)
            marker = "o" if len(line.points) == 1 else None  # a line of one point would be invisible
            color = BLUE if line.kind == "test" else TRAIN_COLOR
            # clip_on=False: half the width of a line at 0 would be cut off
            axes.plot(xs, values, color=color, linewidth=1.6, marker=marker, markersize=5, clip_on=False,
                      solid_joinstyle="round", gid=f"{line.kind}-{number}", zorder=3)  # fmt: skip
        axes.set(xlim=(0, last_epoch or 1), ylim=(y_ticks[0], y_ticks[-1]), yticks=y_ticks)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.grid(axis="y", linewidth=1)
        axes.tick_params(length=0, labelsize=TEXT_PIXELS)  # in SVG units, which are the page's pixels
        axes.spines[:].set_visible(False)
        axes.set_axisbelow(True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def thinned(points: list[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points, each the mean of a group of neighbors; a short line is unchanged."""
    # Means rather than every n-th point: a sample of a noisy training loss hides its level, and two seeds that are
    # alike would look different.
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return means or points


def _on_log_axis(lines: Sequence[Line]) -> list[Line]:
    """The lines without values that a logarithmic axis cannot show: zeros (warmup), and those below MAX_DECADES."""
    least = max((y for line in lines for _, y in line.points), default=1.0) * 10.0**-MAX_DECADES
    positive = [replace(line, points=[(x, y) for x, y in line.points if y >= least and y > 0]) for line in lines]
    return [line for line in positive if line.points]


def _decades(values: Sequence[float]) -> list[float]:
    """The powers of ten that enclose positive values, two at least."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _lines(experiment: Experiment, value: Callable[[dict], float | None], splits: Sequence[str]) -> list[Line]:
    lines = []
    for split in splits:  # training first, so that the held-out curves are drawn over it
        for run in experiment.runs:
            points = _points(run, value, split)
            if points:
                kind = "train" if split == "train" else "test"
                lines.append(Line(thinned(points), kind, f"{split}, seed {run.seed}"))
    return lines


def _points(run: Run, value: Callable[[dict], float | None], split: str) -> list[Point]:
    found = [(float(row["epoch"]), value(row)) for row in run.metrics if row["split"] == split]
    # a diverged run logs NaN or infinity as its last loss; the axis must not reach for it
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def _value(key: str) -> Callable[[dict], float | None]:
    return lambda row: row.get(key)


def _percent(key: str) -> Callable[[dict], float | None]:
    return lambda row: None if row.get(key) is None else 100 * row[key]


def _figure(title: str, lines: list[Line], *, is_log: bool = False) -> Markup | None:
    if not lines or (is_log and not _on_log_axis(lines)):
        return None
    # An <img> with its own document rather than inline SVG: matplotlib's ids repeat from chart to chart, and would
    # collide within one page.
    url = f"data:image/svg+xml;base64,{base64.b64encode(chart_svg(lines, is_log=is_log)).decode()}"
    description = f"{title}: {'; '.join(line.label for line in lines)}"
    return render("chart.html", title=title, url=url, description=description)

"""Curves of loss, top-1 error and learning rate against the epoch, as SVG drawn in the page's own colors.

Pure functions of metrics.jsonl rows; called by page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

from tencrop.report.collect import Experiment, Run

WIDTH, HEIGHT = 340, 220  # of a chart, about its size on the page, so that 11 px text stays 11 px
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 26  # margins
MOST_POINTS = 250  # of a line; more rows are averaged in groups
MOST_DECADES = 6  # of a logarithmic axis
HELD_OUT = ("val", "minival")
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart; `kind` is train or test, and the CSS class that colors it."""

    points: list[Point]
    kind: str
    label: str


def curves(experiment: Experiment) -> str:
    """Three charts, one line per run and split, as a row of HTML figures; empty without metrics."""
    both = ("train", *HELD_OUT)
    is_mixed = any(row.get("labels") == "heavier" for run in experiment.runs for row in run.metrics)
    error = "Top-1 error, percent" + ("; in training against the heavier of two mixed labels" if is_mixed else "")
    is_divided = experiment.runs[0].config["schedule"]["name"] in ("step", "plateau")
    return (
        _figure(error, _lines(experiment, _percent("top1_error"), both))
        + _figure("Loss", _lines(experiment, _value("loss"), both))
        + _figure("Learning rate", _lines(experiment, _value("lr"), ("train",)), is_log=is_divided)
    )


def chart(lines: Sequence[Line], *, is_log: bool = False) -> str:
    """An SVG of `lines` over epochs; y from 0, or logarithmic by powers of ten, at most MOST_DECADES of them."""
    if is_log:
        least = max((y for line in lines for _, y in line.points), default=1.0) * 10.0**-MOST_DECADES
        positive = [[(x, math.log10(y)) for x, y in line.points if y >= least] for line in lines]
        lines = [replace(line, points=points) for line, points in zip(lines, positive, strict=True) if points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks = ticks(0, max(xs), 5)
    y_ticks = [*range(math.floor(min(ys)), math.ceil(max(ys)) + 1)] if is_log else ticks(0, max(ys), 5)
    x_range, y_range = (0.0, max(xs)), (y_ticks[0], y_ticks[-1])

    def place(point: Point) -> Point:
        x, y = point
        across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1)
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    grid = "".join(_y_tick(10**tick if is_log else tick, place((0, tick))[1]) for tick in y_ticks)
    axis = "".join(_x_tick(tick, place((tick, y_range[0]))[0]) for tick in x_ticks if tick <= x_range[1])
    drawn = "".join(_polyline(line, [place(point) for point in line.points]) for line in lines)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img>{grid}{axis}{drawn}</svg>'


def ticks(low: float, high: float, at_most: int) -> list[float]:
    """Round numbers from the last at or below `low` to the first at or above `high`, about `at_most` steps."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / at_most
    scale = 10 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of a group of neighbors; a short line is unchanged."""
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return means or points


def _lines(experiment: Experiment, value: Callable[[dict], float | None], splits: Sequence[str]) -> list[Line]:
    lines = []
    for split in splits:
        for run in experiment.runs:
            points = _points(run, value, split)
            if points:
                kind = "train" if split == "train" else "test"
                lines.append(Line(thinned(points), kind, f"{split}, seed {run.seed}"))
    return lines


def _points(run: Run, value: Callable[[dict], float | None], split: str) -> list[Point]:
    found = [(float(row["epoch"]), value(row)) for row in run.metrics if row["split"] == split]
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def _value(key: str) -> Callable[[dict], float | None]:
    return lambda row: row.get(key)


def _percent(key: str) -> Callable[[dict], float | None]:
    return lambda row: None if row.get(key) is None else 100 * row[key]


def _figure(title: str, lines: list[Line], *, is_log: bool = False) -> str:
    if not lines:
        return ""
    return f"<figure class=chart><figcaption>{escape(title)}</figcaption>{chart(lines, is_log=is_log)}</figure>"


def _polyline(line: Line, points: list[Point]) -> str:
    title = f"<title>{escape(line.label)}</title>"
    if len(points) == 1:
        return f'<circle class={line.kind} cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r=2.5>{title}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class={line.kind} points="{path}">{title}</polyline>'


def _y_tick(value: float, y: float) -> str:
    line = f'<line class=grid x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" />'
    return f'{line}<text class=y x="{LEFT - 6}" y="{y + 3.5:.1f}">{value:.6g}</text>'


def _x_tick(value: float, x: float) -> str:
    return f'<text class=x x="{x:.1f}" y="{HEIGHT - 8}">{value:.6g}</text>'

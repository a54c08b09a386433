"""Error against multiply-adds, bubbles by number of parameters: what papers printed, and what was measured.

Printed values stand in conf/published_errors.yaml, costs in complexity/golden.json. Called by figures.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from tencrop.config.verbs import CONF
from tencrop.seeing.drawing import INK, RULE, SOFT, styled, titled

PUBLISHED = CONF / "published_errors.yaml"
# Tol's muted colours, in an order in which neighbours differ; a series is named where it ends as well
COLOURS = ("#332288", "#cc6677", "#117733", "#88ccee", "#882255", "#999933", "#44aa99", "#aa4499", "#c9a227", "#5f6c72")
AREA_PER_MILLION = 6.0  # square points


@dataclass(frozen=True)
class Point:
    """A network under one protocol."""

    model: str  # its file of conf/model
    top1_error: float  # percent
    mult_adds: int
    parameters: int


@dataclass(frozen=True)
class Series:
    """A paper's networks, the cheapest first."""

    name: str
    protocol: str
    source: str
    points: tuple[Point, ...]


def published(counts: dict[str, dict[str, int]], path: Path = PUBLISHED) -> list[Series]:
    """The printed results with the costs of `counts` (complexity.golden), accuracies as 100 minus themselves."""
    found = []
    for entry in yaml.safe_load(path.read_text()):
        assert entry["unit"] in ("error", "accuracy"), entry
        points = [
            Point(
                model,
                float(value) if entry["unit"] == "error" else 100 - float(value),
                counts[model]["mult_adds"],
                counts[model]["parameters"],
            )
            for model, value in entry["values"].items()
        ]
        points.sort(key=lambda point: point.mult_adds)
        found.append(Series(entry["name"], entry["protocol"], entry["source"], tuple(points)))
    return found


def measured(runs: Path, counts: dict[str, dict[str, int]]) -> list[Point]:
    """What evaluations below `runs` found on ImageNet, of networks whose costs are known at their size."""
    points = []
    for path in sorted(runs.rglob("predictions/*.result.json")) if runs.is_dir() else []:
        result: dict[str, Any] = json.loads(path.read_text())
        cost = counts.get(result["model"])
        if result["data"] == "imagenet" and cost is not None and cost["image_size"] == result["size"]:
            points.append(Point(result["model"], 100 * result["top1_error"], cost["mult_adds"], cost["parameters"]))
    return points


def tradeoff_figure(series: Sequence[Series], own: Sequence[Point] = ()) -> Figure:
    """Lines join a paper's networks; crosses are our own measurements."""
    with styled():
        figure = Figure(figsize=(9.2, 6.2))
        titled(figure, "Top-1 error on ImageNet against multiply-adds")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.grid(True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set(xlabel="multiply-adds of one image, billions", ylabel="top-1 error, percent, as published")
        for number, one in enumerate(series):
            colour = COLOURS[number % len(COLOURS)]
            xs, ys = [point.mult_adds / 1e9 for point in one.points], [point.top1_error for point in one.points]
            areas = [AREA_PER_MILLION * point.parameters / 1e6 for point in one.points]
            dashes = "-" if number < len(COLOURS) else "--"  # where a colour comes again
            axes.plot(xs, ys, color=colour, linewidth=1.2, alpha=0.8, linestyle=dashes)
            axes.scatter(xs, ys, s=areas, color=colour, alpha=0.35, linewidth=0)
            axes.scatter(xs, ys, s=9, color=colour, linewidth=0)
        _name(axes, series)
        if own:
            xs, ys = [point.mult_adds / 1e9 for point in own], [point.top1_error for point in own]
            axes.scatter(xs, ys, s=60, marker="x", color=INK, label="measured here")
        for millions in (5, 25, 100):
            area = AREA_PER_MILLION * millions
            axes.scatter([], [], s=area, color=SOFT, alpha=0.35, label=f"{millions} M parameters")
        axes.legend(frameon=False, labelcolor=SOFT, loc="upper right", labelspacing=1.4, borderpad=1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def _name(axes: Any, series: Sequence[Series]) -> None:
    """Each series' name at its cheapest network, moved up or down until no two names overlap."""
    taken: list[tuple[float, float]] = []
    low, high = axes.get_ylim()
    step = (high - low) / 45
    for number, one in enumerate(series):
        first = one.points[0]
        x, y = first.mult_adds / 1e9, first.top1_error
        shifts = [sign * distance * step for distance in range(1, 12) for sign in (1, -1)]
        near = [other_y for other_x, other_y in taken if abs(math.log(x / other_x)) <= 0.9]
        text_y = next((y + shift for shift in shifts if all(abs(y + shift - other) > step for other in near)), y)
        taken.append((x, text_y))
        colour = COLOURS[number % len(COLOURS)]
        axes.annotate(one.name, (x, text_y), color=colour, weight="bold", ha="center", va="center", size=8.5)

"""Figure of error against multiply-adds: published results by paper, our measurements, bubbles sized by parameters.

conf/tradeoff.yaml selects the rows of printed tables to draw; complexity/golden.json has the costs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tencrop.cli.choices import CONF
from tencrop.complexity.networks import complexity_of, model_file
from tencrop.config.yaml_files import read_yaml_file
from tencrop.evaluation.whole_data import is_on_whole
from tencrop.tables.reading import ERRORS, read_rows
from tencrop.tables.schema import ErrorRow
from tencrop.visualization.drawing import INK, PAPER, RULE, SOFT, styled, titled
from tencrop.visualization.record import Record

PUBLISHED = CONF / "tradeoff.yaml"
# Paul Tol's muted colors, ordered such that neighbors differ. Each series is labeled in the figure as well, since ten
# colors are more than a reader can match with a legend.
COLORS = ("#332288", "#cc6677", "#117733", "#88ccee", "#882255", "#999933", "#44aa99", "#aa4499", "#c9a227", "#5f6c72")
AREA_PER_MILLION = 6.0  # square points per million parameters


@dataclass(frozen=True)
class Point:
    """One network's error and cost."""

    model: str  # name of its file in conf/model
    top1_error: float  # percent
    mult_adds: int
    parameters: int


@dataclass(frozen=True)
class Series:
    """One paper's networks, ordered by multiply-adds."""

    name: str
    protocol: str
    source: str
    points: tuple[Point, ...]


def published(counts: dict[str, dict[str, int]], path: Path = PUBLISHED, errors: Path = ERRORS) -> list[Series]:
    """Combine published errors with the costs in `counts` (complexity.golden); accuracies become 100 - accuracy.

    path: file of the series, each with a name and rows (TABLE.ID) that have a model; errors: folder of the tables.
    """
    found = []
    for entry in read_yaml_file(path):
        rows = read_rows(entry["rows"], errors)
        points = [
            Point(str(row.model), table.error(row, "top1"), cost["mult_adds"], cost["parameters"])
            for table, row in rows
            for cost in (counts[str(row.model)],)
        ]
        points.sort(key=lambda point: point.mult_adds)
        # dict.fromkeys: distinct values in order of appearance; a series may mix tables and protocols
        protocols = dict.fromkeys(_protocol_name(row) for _, row in rows)
        sources = dict.fromkeys(f"{table.source} ({table.title})" for table, _ in rows)
        found.append(Series(entry["name"], ", ".join(protocols), "; ".join(sources), tuple(points)))
    return found


def _protocol_name(row: ErrorRow) -> str:
    return "not stated" if row.protocol is None or row.protocol.name is None else row.protocol.name


def point_of(
    model: str,
    kwargs: Mapping[str, Any],
    size: int,
    top1_error: float,
    counts: Mapping[str, Mapping[str, int]],
    *,
    blur_pool: bool = False,
) -> Point | None:
    """Point of a network at an image size, error in percent; None if conf/model has no such network at this size."""
    # counts hold for one size and one set of arguments: another width or resolution has another cost
    cost = counts.get(model)
    if cost is None or cost["image_size"] != size or model_file(model)[0].kwargs != kwargs:
        return None
    if blur_pool:  # the files of conf/model have none; the blur adds 0.5% to ResNet-50's multiply-adds
        blurred = complexity_of(replace(model_file(model)[0], blur_pool=True), size)
        return Point(model, top1_error, blurred.mult_adds, blurred.parameters)
    return Point(model, top1_error, cost["mult_adds"], cost["parameters"])


def measured(results: Iterable[Mapping[str, Any]], counts: Mapping[str, Mapping[str, int]]) -> list[Point]:
    """Select the results on all of ImageNet of single networks (no ensembles) whose costs are known.

    Left out: results with another mean or std than the training's.
    """
    points = []
    for result in results:
        is_single = isinstance(result["checkpoint"], str)
        if is_on_whole("imagenet", result) and is_single and "changed_normalization" not in result:
            kwargs, error = json.loads(result["model_kwargs"]), 100 * result["top1_error"]
            is_blurred = result.get("blur_pool") == "true"
            points.append(point_of(result["model"], kwargs, result["size"], error, counts, blur_pool=is_blurred))
    return [one for one in points if one is not None]


def tradeoff_record(series: Sequence[Series]) -> Record:
    """Record with a caption that names the source and protocol of each series."""
    caption = "Bubble area: parameters. Recipes and test protocols differ from paper to paper: " + "; ".join(
        f"{one.name}: {one.source} ({one.protocol})" for one in series
    )
    return Record("Error and cost", caption, "all")


def tradeoff_figure(series: Sequence[Series], own: Sequence[Point] = (), claims: Sequence[Point] = ()) -> Figure:
    """Draw a line through each paper's networks, crosses for our measurements, rings for the errors claimed."""
    with styled():
        figure = Figure(figsize=(9.2, 6.2))
        titled(figure, "Top-1 error on ImageNet against multiply-adds")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.grid(True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set(xlabel="multiply-adds of one image, billions", ylabel="top-1 error, percent")
        for number, one in enumerate(series):
            color = COLORS[number % len(COLORS)]
            xs, ys = [point.mult_adds / 1e9 for point in one.points], [point.top1_error for point in one.points]
            areas = [AREA_PER_MILLION * point.parameters / 1e6 for point in one.points]
            dashes = "-" if number < len(COLORS) else "--"  # when the colors repeat
            axes.plot(xs, ys, color=color, linewidth=1.2, alpha=0.8, linestyle=dashes)
            axes.scatter(xs, ys, s=areas, color=color, alpha=0.35, linewidth=0)
            # a small solid center marks the exact position in large bubbles
            axes.scatter(xs, ys, s=9, color=color, linewidth=0, zorder=4)
        _name(axes, series)
        ring: dict[str, Any] = {"marker": "o", "facecolor": "none", "edgecolor": INK, "s": 90}
        cross: dict[str, Any] = {"marker": "x", "color": INK, "s": 60}
        for points, look, label in ((claims, ring, "claimed by these experiments"), (own, cross, "measured here")):
            if points:
                xs, ys = [point.mult_adds / 1e9 for point in points], [point.top1_error for point in points]
                axes.scatter(xs, ys, label=label, zorder=5, **look)
        for millions in (5, 25, 100):  # empty scatters, for the legend only
            area = AREA_PER_MILLION * millions
            axes.scatter([], [], s=area, color=SOFT, alpha=0.35, label=f"{millions} M parameters")
        axes.legend(frameon=False, labelcolor=SOFT, loc="upper right", labelspacing=1.4, borderpad=1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def _name(axes: Any, series: Sequence[Series]) -> None:
    """Label each series left of its cheapest network, moved up or down until no two labels overlap."""
    taken: list[tuple[float, float]] = []
    low, high = axes.get_ylim()
    step = (high - low) / 45
    shifts = [0.0, *(sign * distance * step for distance in range(1, 12) for sign in (1, -1))]
    for number, one in enumerate(series):
        first = one.points[0]
        x, y = first.mult_adds / 1e9, first.top1_error
        # within a factor of e^1.3 = 3.7 on the logarithmic axis, labels may touch
        near = [other_y for other_x, other_y in taken if abs(math.log(x / other_x)) <= 1.3]
        text_y = next((y + shift for shift in shifts if all(abs(y + shift - other) > step for other in near)), y)
        taken.append((x, text_y))
        paper = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.6}  # over lines and bubbles
        style = {"color": COLORS[number % len(COLORS)], "weight": "bold", "size": 8.5, "ha": "right", "va": "center"}
        axes.text(x / 1.08, text_y, one.name, bbox=paper, **style)
    axes.set_xlim(left=min(one.points[0].mult_adds for one in series) / 1e9 / 3.5)

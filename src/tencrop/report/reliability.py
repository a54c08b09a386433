"""The reliability plot: accuracy against confidence in bins of equal width, above the share of images in each bin."""

from __future__ import annotations

import io

from tencrop.report.curves import TEXT_PIXELS, TRAIN_COLOR
from tencrop.report.score_statistics import Calibration

WIDTH, HEIGHT = 340, 340  # CSS pixels, as those of the curves


def reliability_svg(calibration: Calibration) -> bytes:
    """An SVG of a calibration; the same calibration gives the same bytes.

    Where a bar ends above the diagonal, the network is right more often than its confidence says.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import; tables alone do without it

    from tencrop.visualization.drawing import BLUE, SOFT, styled

    filled = [one for one in calibration.bins if one.num_images]
    lefts, widths = [one.low for one in filled], [one.high - one.low for one in filled]
    scale = 1 / 72  # SVG output has 72 units an inch, so one unit is one pixel of WIDTH
    with styled(), rc_context({"font.family": ["DejaVu Sans", "sans-serif"], "font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(WIDTH * scale, HEIGHT * scale))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        bars = upper.bar(lefts, [one.accuracy for one in filled], widths, align="edge", color=BLUE, edgecolor="white")
        for number, bar in enumerate(bars):
            bar.set_gid(f"accuracy-{number}")
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
        # The bar of a wide bin does not tell where in the bin its images lie; the dot stands at their mean.
        points = [one.confidence for one in filled], [one.accuracy for one in filled]
        upper.plot(*points, "o", color="white", markeredgecolor=BLUE, markersize=4, clip_on=False, zorder=4)
        shares = [one.num_images / calibration.num_images for one in filled]
        lower.bar(lefts, shares, widths, align="edge", color=TRAIN_COLOR, edgecolor="white")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.set(ylim=(0, 1), yticks=(0, 0.5, 1), ylabel="share", xlabel="confidence")
        for axes in (upper, lower):
            axes.grid(axis="y", linewidth=1)
            axes.tick_params(length=0, labelsize=TEXT_PIXELS)
            axes.xaxis.label.set_size(TEXT_PIXELS)
            axes.yaxis.label.set_size(TEXT_PIXELS)
            axes.spines[:].set_visible(False)
            axes.set_axisbelow(True)
        figure.subplots_adjust(left=0.14, right=0.97, top=0.97, bottom=0.12, hspace=0.12)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()

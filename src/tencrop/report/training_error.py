"""Training error against epochs of several experiments in one figure, as Krizhevsky et al. 2012 draw Figure 1.

    python -m tencrop.report.training_error 'runs=[FOLDER,...]' output=DIR

Prints the epochs until 25% training error and their ratio to the fastest; writes DIR/training_error.svg and .png.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from tencrop.config import ReportConfig, UserError, command
from tencrop.report.collect import Experiment, Run, collect

TARGET = 0.25  # the training error at which Figure 1 compares
DASHES = ("-", "--", "-.", ":")  # of the experiments, the fastest first
Point = tuple[float, float]


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    experiments = by_speed(collect(Path(path) for path in config.runs))
    print(race_table(experiments))
    for path in write_figure(experiments, Path(config.output)):
        print(path)
    return 0


def training_curve(run: Run) -> list[Point]:
    """(epoch, training error) at every row of the log: the error, a fraction, over the images since the row before."""
    return [(float(row["epoch"]), float(row["top1_error"])) for row in run.metrics if row["split"] == "train"]


def epochs_to(target: float, curve: Sequence[Point]) -> float | None:
    """Where the curve first is at `target` or below, on straight lines between its points; None where it never is."""
    before: Point | None = None
    for epoch, error in curve:
        if error <= target:
            if before is None:
                return epoch
            share = (before[1] - target) / (before[1] - error)
            return before[0] + share * (epoch - before[0])
        before = (epoch, error)
    return None


def mean_epochs(experiment: Experiment) -> float | None:
    """Epochs to TARGET, averaged over the seeds; None where a seed does not reach it."""
    found = [epochs_to(TARGET, training_curve(run)) for run in experiment.runs]
    reached = [epochs for epochs in found if epochs is not None]
    return sum(reached) / len(reached) if len(reached) == len(found) else None


def by_speed(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The fastest to TARGET first. Raises UserError where a run has logged no training error."""
    for experiment in experiments:
        for run in experiment.runs:
            if not training_curve(run):
                raise UserError(f"{run.folder}: has logged no training error yet; train it further")

    def order(experiment: Experiment) -> tuple[float, str]:
        epochs = mean_epochs(experiment)
        return (math.inf if epochs is None else epochs, experiment.name)

    return sorted(experiments, key=order)


def race_table(experiments: Sequence[Experiment]) -> str:
    """A line for each experiment, sorted by speed: epochs to TARGET and how many times the fastest's that is."""
    fastest = mean_epochs(experiments[0])
    lines = []
    for experiment in experiments:
        epochs, num_seeds = mean_epochs(experiment), len(experiment.runs)
        seeds = f"{num_seeds} seed{'' if num_seeds == 1 else 's'}"
        if epochs is None or fastest is None:
            words = f"not at {TARGET:.0%} training error in all of {seeds}"
        else:
            words = f"{epochs:.2f} epochs to {TARGET:.0%} training error ({seeds}), {epochs / fastest:.1f} times"
        lines.append(f"{experiment.name}: {words}")
    return "\n".join(lines)


def write_figure(experiments: Sequence[Experiment], folder: Path) -> list[Path]:
    """training_error.svg and .png: a line for each run, experiments told apart by dashes and colour."""
    from matplotlib.figure import Figure  # a second that the table does not need

    from tencrop.data.manifest import write_whole
    from tencrop.seeing.drawing import BLUE, GREEN, ORANGE, PNG_DPI, PURPLE, SOFT, styled

    colours = (BLUE, ORANGE, GREEN, PURPLE)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with styled():
        figure = Figure(figsize=(5.2, 3.6))
        axes = figure.subplots()
        for number, experiment in enumerate(experiments):
            colour, dash = colours[number % len(colours)], DASHES[number % len(DASHES)]
            for run in experiment.runs:
                label = experiment.name if run is experiment.runs[0] else None
                epochs, errors = zip(*training_curve(run), strict=True)
                axes.plot(epochs, errors, dash, color=colour, linewidth=1.6, label=label)
        axes.axhline(TARGET, color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.set(xlabel="epochs", ylabel="training error rate", ylim=(0, 1), xlim=(0, None))
        axes.legend(frameon=False)
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": PNG_DPI})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, bbox_inches="tight", **options)
            paths.append(folder / f"training_error.{kind}")
            write_whole(paths[-1], buffer.getvalue())
    return paths


if __name__ == "__main__":
    main()

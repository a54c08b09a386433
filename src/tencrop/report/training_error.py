"""Training error against epochs for several experiments in one figure, as in Krizhevsky et al. 2012, Figure 1.

    python -m tencrop.report.training_error 'runs=[FOLDER,...]' output=DIR

Prints the epochs that each experiment needs to reach 25% training error, and how many times the fastest's that is.
Writes DIR/training_error.svg, .png and .json. The report includes the same figure for experiments that train one
network on the same data (comparisons.py).
"""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import close_at_ctrl_c, exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import math
from collections.abc import Sequence
from pathlib import Path

from tencrop.cli.command import command
from tencrop.cli.command_line import typed_word
from tencrop.config import ReportConfig, UserError
from tencrop.config.writable import check_writable
from tencrop.report.collect import Experiment, Run, collect, input_folders
from tencrop.visualization.record import Record

TARGET = 0.25  # the training error at which Figure 1 compares ReLU with tanh
DASHES = ("-", "--", "-.", ":")  # one per experiment, starting with the fastest
MAX_EXPERIMENTS = 16  # four dash patterns times four colors
Point = tuple[float, float]


@command("report", ReportConfig)
def main(config: ReportConfig) -> int:
    output = Path(config.output)
    # before the runs are read, so that a mistyped output=DIR is refused at once
    check_writable(output / "training_error.svg", remedy="make room, or name another folder with output=DIR")
    close_at_ctrl_c()
    experiments = collect(input_folders(config.runs))
    for experiment in experiments:
        if not has_training_error(experiment):
            raise UserError(
                f"{experiment.runs[0].folder}: a run of {experiment.name} has logged no training error on unmixed"
                " labels; train it further, or leave it out of runs="
            )
    print(speed_table(by_speed(experiments)))
    for path in draw_training_error(experiments, output):
        print(path)
    return 0


def has_training_error(experiment: Experiment) -> bool:
    """Whether every run has logged training errors, and none of them on mixed labels."""
    # Under mixup and CutMix the error is counted against the dominant label and stays above 25% for good; with and
    # without mixing the curves cannot be compared.
    is_mixed = any(row.get("labels") == "heavier" for run in experiment.runs for row in run.metrics)
    return not is_mixed and all(training_curve(run) for run in experiment.runs)


def training_curve(run: Run) -> list[Point]:
    """(epoch, training error) of every row: the error, a fraction, over the images since the previous row."""
    return [(float(row["epoch"]), float(row["top1_error"])) for row in run.metrics if row["split"] == "train"]


def epochs_to(target: float, curve: Sequence[Point]) -> float | None:
    """The epoch at which the linearly interpolated curve first reaches `target`; None if it never does."""
    before: Point | None = None
    for epoch, error in curve:
        if error <= target:
            if before is None:  # the first row is below the target already; nothing to interpolate from
                return epoch
            share = (before[1] - target) / (before[1] - error)
            return before[0] + share * (epoch - before[0])
        before = (epoch, error)
    return None


def mean_epochs(experiment: Experiment) -> float | None:
    """Epochs to TARGET, averaged over the seeds; None if a seed does not reach it."""
    # a mean over the seeds that did reach it would be too fast
    found = [epochs_to(TARGET, training_curve(run)) for run in experiment.runs]
    reached = [epochs for epochs in found if epochs is not None]
    return sum(reached) / len(reached) if len(reached) == len(found) else None


def by_speed(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The experiments sorted by their epochs to TARGET; those that do not reach it come last, by name."""

    def order(experiment: Experiment) -> tuple[float, str]:
        epochs = mean_epochs(experiment)
        return (math.inf if epochs is None else epochs, experiment.name)

    return sorted(experiments, key=order)


def speed_table(experiments: Sequence[Experiment]) -> str:
    """One line per experiment, sorted by speed: its epochs to TARGET and their ratio to the fastest's."""
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


def draw_training_error(experiments: Sequence[Experiment], folder: Path, name: str = "training_error") -> list[Path]:
    """Write NAME.svg, .png and .json, with one line per run and one style per experiment; returns both pictures."""
    from matplotlib.figure import Figure  # slow to import, and the table above does not need it

    from tencrop.visualization.drawing import BLUE, GREEN, ORANGE, PURPLE, SOFT, save_figure, styled

    colors = (BLUE, ORANGE, GREEN, PURPLE)
    shown = by_speed(experiments)[:MAX_EXPERIMENTS]
    with styled():
        figure = Figure(figsize=(5.2, 3.6))
        axes = figure.subplots()
        for number, experiment in enumerate(shown):
            # every fifth experiment has its color again, with the next dash pattern
            color, dash = colors[number % 4], DASHES[(number + number // 4) % 4]
            for run in experiment.runs:
                label = experiment.name if run is experiment.runs[0] else None  # one legend entry for all seeds
                epochs, errors = zip(*training_curve(run), strict=True)
                axes.plot(epochs, errors, dash, color=color, linewidth=1.6, label=label)
        axes.axhline(TARGET, color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
        # the paper's axes; from 0, so that curves of several reports can be compared by eye
        axes.set(xlabel="epochs", ylabel="training error rate", ylim=(0, 1), xlim=(0, None))
        figure.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.11, 0.89))  # above, clear of the curves
    left_out = f" The fastest {len(shown)} of {len(experiments)}." if len(shown) < len(experiments) else ""
    caption = (
        "Training error over the images since the previous row of metrics.jsonl, as in Krizhevsky et al. 2012, Figure"
        f" 1; one line per seed; the dotted line is the target. {speed_table(shown).replace(chr(10), '; ')}.{left_out}"
    )
    folders = [str(run.folder) for experiment in shown for run in experiment.runs]
    line = f"python -m tencrop.report.training_error {typed_word('runs', folders)}"
    model = experiments[0].runs[0].config["model"]["name"]
    return save_figure(figure, folder, name, Record("Training error", caption, model, command=line))


if __name__ == "__main__":
    main()

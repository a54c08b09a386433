"""Arguments of train.py for the missing runs of a table's row, after those for the runs that they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import hydra_word
from tencrop.cli.compose import compose_training
from tencrop.config import run_path
from tencrop.report.row_runs import RunsOf
from tencrop.tables.recipes import INIT
from tencrop.tables.schema import Overrides, RowTraining


def training_commands(training: RowTraining, runs_of: RunsOf, typed: Sequence[str]) -> list[Overrides]:
    """Arguments of train.py for a training; before them, those for the runs that it starts from and that are missing.

    It starts from the finished run with its own seed, or else from the one with the lowest seed. If no run of the
    source is finished, the source is to be trained with the same seed, and its folder follows from its arguments and
    from `typed`, what the user types besides.
    """
    if training.init is None:
        return [training.overrides]
    seed = [word for word in training.overrides if word.startswith("seed=")]
    runs = runs_of[training.init][1] if training.init in runs_of else ()
    if runs:
        source = next((run for run in runs if seed == [f"seed={run.seed}"]), runs[0])
        return [(*training.overrides, hydra_word(INIT, _below_current_folder(source.folder)))]
    before = training_commands(replace(training.init, overrides=(*training.init.overrides, *seed)), runs_of, typed)
    folder = run_path(compose_training((*before[-1], *typed), CONF))
    return [*before, (*training.overrides, hydra_word(INIT, folder))]


def _below_current_folder(path: Path) -> Path:
    """The path as a user would type it: relative where possible, since it is part of the new run's learning hash."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

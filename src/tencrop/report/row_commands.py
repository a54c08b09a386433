"""Arguments of train.py for the missing runs of a table's row, after those for the runs that they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import hydra_word
from tencrop.cli.compose import compose_training
from tencrop.config import run_path
from tencrop.report.row_runs import RunsOf
from tencrop.tables.recipes import INIT
from tencrop.tables.schema import Overrides, RowTraining

if TYPE_CHECKING:
    from tencrop.report.collect import Run


def missing_chain(training: RowTraining, runs_of: RunsOf) -> list[RowTraining]:
    """A training; before it, those that it starts from and that have no finished run, with its seed."""
    if training.init is None or _runs(training.init, runs_of):
        return [training]
    # The source gets the seed of its target, so that five seeds of a chain are five independent measurements.
    source = replace(training.init, overrides=(*training.init.overrides, *_seed_word(training)))
    return [*missing_chain(source, runs_of), training]


def training_commands(training: RowTraining, runs_of: RunsOf, typed: Sequence[str]) -> list[Overrides]:
    """Arguments of train.py for each training of `missing_chain`.

    A training starts from the finished run with its own seed, or else from the one with the lowest seed. Where the
    source has yet to be trained, its folder follows from its arguments and from `typed`, what the user types besides.
    """
    commands: list[Overrides] = []
    for one in missing_chain(training, runs_of):
        if one.init is None:
            commands.append(one.overrides)
            continue
        # This source is the training before it in the chain: its folder does not exist yet, but its arguments name it.
        if commands:
            folder = run_path(compose_training((*commands[-1], *typed), CONF))
        else:
            runs = _runs(one.init, runs_of)
            own = [run for run in runs if _seed_word(one) == [f"seed={run.seed}"]]
            # Runs are sorted by seed (row_runs._runs), so the first is the lowest.
            folder = _below_current_folder((own or runs)[0].folder)
        commands.append((*one.overrides, hydra_word(INIT, folder)))
    return commands


def _runs(training: RowTraining, runs_of: RunsOf) -> Sequence[Run]:
    return runs_of[training][1] if training in runs_of else ()


def _seed_word(training: RowTraining) -> list[str]:
    return [word for word in training.overrides if word.startswith("seed=")]


def _below_current_folder(path: Path) -> Path:
    """The path as a user would type it: relative where possible, since it is part of the new run's learning hash."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

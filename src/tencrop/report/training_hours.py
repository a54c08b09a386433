"""report.py table=NAME plan=true: adds up the device-hours of a table's missing trainings, from measurements.

The measurements are those that train.py ... plan=true has kept under runs/ (records/probes.py). A training without one
is listed with the command that measures it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tencrop.cli.command_line import command_prefix, for_shell
from tencrop.config import UserError
from tencrop.config.code import PACKAGE, SCORING, code_sha256
from tencrop.records.probes import SavedProbe, read_probes
from tencrop.report.paper_tables import HASHES, places, show
from tencrop.report.row_commands import missing_chain
from tencrop.report.row_runs import RunsOf, runs_of_tables
from tencrop.report.table_plan import plan_table
from tencrop.tables.reading import ERRORS, chosen_tables, with_bases
from tencrop.tables.recipes import learning_hashes
from tencrop.tables.schema import Overrides, RowTraining
from tencrop.text_tables import aligned

if TYPE_CHECKING:
    from tencrop.report.collect import Evaluation

NOT_MEASURED = "–"
Device = tuple[str, int]  # kind, and number of devices
Probes = Mapping[Overrides, Mapping[Device, SavedProbe]]  # the measurements of each recipe


@dataclass(frozen=True)
class Needed:
    """The trainings that a row still needs, with those that they start from."""

    label: str
    trainings: tuple[RowTraining, ...]


def report_hours(name: str, runs: Sequence[str], output: Path, folder: Path = ERRORS) -> int:
    """Print the device-hours of the missing trainings of the table `name`, or of all; returns the exit code.

    Runs and measurements are searched as by report_tables. `output` only has the cache of learning hashes.
    """
    tables, paths, broken = chosen_tables(name, folder), places(runs), list[UserError]()
    runs_of = runs_of_tables(with_bases(tables, folder), paths, kept=output / HASHES, on_broken=broken.append)
    evaluations, code = _evaluations(runs_of, paths, broken), code_sha256(PACKAGE, SCORING)
    needed = list[Needed]()
    for table in tables:
        # Only what remains to be trained: pending evaluations take minutes, not days.
        for one in plan_table(table, runs_of, evaluations, code_sha256=code)[1]:
            trainings = [each for training in one.trainings for each in missing_chain(training, runs_of)]
            # Rows of different tables may have the same label.
            label = one.label if len(tables) == 1 else f"{table.name}: {one.label}"
            needed += [Needed(label, tuple(dict.fromkeys(trainings)))] if trainings else []
    words = list(dict.fromkeys(measured_overrides(training) for one in needed for training in one.trainings))
    probes = _probes(words, paths, output / HASHES, broken)
    without = sum(row.reason is not None for table in tables for row in table.rows)
    show([hours_text(name, needed, probes, num_untrainable=without)])
    for error in broken:
        print(f"error: left out: {error}", file=sys.stderr)
    return 2 if broken else 0


def measured_overrides(training: RowTraining) -> Overrides:
    """Arguments of train.py plan=true for a training, without seed and initial weights: neither changes its time."""
    return tuple(word for word in training.overrides if not word.startswith(("seed=", "training.init.")))


def hours_text(name: str, needed: Sequence[Needed], probes: Probes, *, num_untrainable: int) -> str:
    """Hours by row, a sum for each kind and number of devices, and the commands that measure what is not known."""
    rest = f"; {num_untrainable} rows cannot be trained" if num_untrainable else ""
    if not needed:
        return f"{name}: no training is missing{rest}"
    trainings = list(dict.fromkeys(training for one in needed for training in one.trainings))  # rows may share one
    # A sum of the lines above would count a training twice that two rows share; hence a line of its own.
    rows = [*needed, Needed("all, each training once", tuple(trainings))]
    devices = sorted({device for measured in probes.values() for device in measured})
    table = [("missing", "trainings", *map(_device_text, devices))]
    table += [
        (row.label, str(len(row.trainings)), *(_hours(row, probes, device) for device in devices)) for row in rows
    ]
    lines = [f"{name}: device-hours of the missing trainings{rest}", "", *aligned(table, left=[0])]
    lines += ["", *(_sum(trainings, probes, device) for device in devices)] if devices else []
    if len(devices) > 1:
        lines.append("Hours on different devices are not added: each sum is of the trainings measured on that device.")
    unknown = dict.fromkeys(words for training in trainings if not probes[words := measured_overrides(training)])
    if unknown:
        lines += [
            "",
            f"not measured: {len(unknown)} of the recipes; measure each, with your data.root and hardware added:",
        ]
    lines += [f"    {' '.join([command_prefix('train'), *map(for_shell, words), 'plan=true'])}" for words in unknown]
    return "\n".join(lines)


def _device_text(device: Device) -> str:
    kind, number = device
    return f"{number} x {kind}"


def _hours(row: Needed, probes: Probes, device: Device) -> str:
    """Device-hours of a row's trainings; a dash unless all of them were measured on the device."""
    found = [probes[measured_overrides(training)].get(device) for training in row.trainings]
    hours = [probe.device_hours for probe in found if probe is not None]
    # All or a dash: a part of the sum would look like the cost of the row.
    return f"{sum(hours):,.3g}" if len(hours) == len(found) else NOT_MEASURED


def _sum(trainings: Sequence[RowTraining], probes: Probes, device: Device) -> str:
    """One line: the hours of the trainings that were measured on the device, and how many these are."""
    found = [probes[measured_overrides(training)].get(device) for training in trainings]
    hours = [probe.device_hours for probe in found if probe is not None]
    # Here a part may be summed, since the line says how many trainings it has.
    return f"{_device_text(device)}: {sum(hours):,.3g} device-hours for {len(hours)} of {len(found)} trainings"


def _evaluations(runs_of: RunsOf, paths: Sequence[Path], broken: list[UserError]) -> list[Evaluation]:
    if not runs_of:
        return []
    from tencrop.report.collect import collect_evaluations  # takes a second to import

    return collect_evaluations(paths, lambda found: broken.append(found.error))


def _probes(recipes: Sequence[Overrides], paths: Sequence[Path], kept: Path, broken: list[UserError]) -> Probes:
    # By device and number: a device's share of the batch, and so its time for a step, depends on their number.
    by_hash: dict[str, dict[Device, SavedProbe]] = {}
    for probe in read_probes(paths, broken.append):
        by_hash.setdefault(probe.recipe, {})[probe.device, probe.num_devices] = probe
    return {words: by_hash.get(learned, {}) for words, learned in learning_hashes(recipes, kept).items()}

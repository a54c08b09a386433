"""Finds the finished runs that follow the recipe of a table's row, for matching.py and commands/evaluate_table.py.

A run follows a row if its training settings equal those that the row's overrides compose. If the row starts from the
run of another row, the run must also have loaded the final weights of a run of that row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tencrop.config import Config, UserError
from tencrop.config.documents import read_json
from tencrop.tables.recipes import composed, learning_hashes, row_learning_keys
from tencrop.tables.schema import ErrorRow, ErrorTable, RowTraining

if TYPE_CHECKING:
    from tencrop.report.collect import Run

OnBroken = Callable[[UserError], None]
# by training of a row: the configuration that it composes, and its finished runs, one per seed
RunsOf = Mapping[RowTraining, tuple[Config, Sequence["Run"]]]


def runs_of_tables(
    tables: Sequence[ErrorTable], paths: Sequence[Path], *, kept: Path, on_broken: OnBroken
) -> dict[RowTraining, tuple[Config, list[Run]]]:
    """The recipe and the finished runs for the training of every row and member that has runs in or below `paths`.

    Also for the trainings that these start from.
    """
    folders = [folder for path in paths for folder in _run_folders(path)]
    wanted = trainings_of(tables)
    if not wanted or not folders:
        return {}
    # Select by the hash in the folder's name first: reading a run imports a second's worth of packages, and most
    # tables have no run.
    hashes = learning_hashes([training.overrides for training in wanted if training.init is None], kept)
    by_hash: dict[str, list[Path]] = {}
    for folder in folders:
        by_hash.setdefault(folder.name.rpartition("-")[2], []).append(folder)
    found: dict[RowTraining, tuple[Config, list[Run]]] = {}
    # Sources come first in `wanted`, so the runs that a training may start from are in `found` when it is its turn.
    for training in wanted:
        if training.init is None:
            candidates = by_hash.get(hashes[training.overrides], [])
        else:  # the name's hash covers the path of the initial weights, which a row does not know
            candidates = _started_from(found.get(training.init, (None, []))[1], folders)
        if candidates:
            found[training] = _runs(training, candidates, on_broken)
    return found


def trainings_of(tables: Sequence[ErrorTable]) -> list[RowTraining]:
    """The trainings of all rows and members, each after the one that it starts from."""
    rows = [row for _, row in trainable_rows(tables)]
    own = [one for row in rows for one in (row.training, *(member.training for member in row.members)) if one]
    chains = [[*_sources(training), training] for training in own]
    return list(dict.fromkeys(training for chain in chains for training in chain))


def _sources(training: RowTraining) -> list[RowTraining]:
    return [] if training.init is None else [*_sources(training.init), training.init]


def _started_from(sources: Sequence[Run], folders: Sequence[Path]) -> list[Path]:
    """The run folders whose initial weights are the final weights of one of these runs, wherever its folder was."""
    # Both: a run with EMA weights gives these to the next one by default, and a run without them its raw weights.
    digests = {
        digest for run in sources for key in ("weights_sha256", "ema_sha256") if (digest := run.manifest["result"][key])
    }
    if not digests:
        return []
    # a broken manifest: read_run tells the user about it
    shape, started = {"init?": {"weights_sha256": str}}, []
    for folder in folders:
        try:
            manifest = read_json(folder / "manifest.json", shape, what="the manifest of a run folder", remedy="")
        except UserError:
            continue
        # By digest and not by path: a folder that was moved or copied still holds the same weights.
        if manifest.get("init", {}).get("weights_sha256") in digests:
            started.append(folder)
    return started


def trainable_rows(tables: Sequence[ErrorTable]) -> list[tuple[ErrorTable, ErrorRow]]:
    """The rows that runs can support, with their tables: single networks, and ensembles of them."""
    return [(table, row) for table in tables for row in table.rows if row.reason is None]  # else it tells why not


def _runs(training: RowTraining, folders: Sequence[Path], on_broken: OnBroken) -> tuple[Config, list[Run]]:
    """The recipe, and the finished runs that follow it: one per seed, sorted by seed."""
    from omegaconf import OmegaConf

    from tencrop.config import validate
    from tencrop.config.documents import literal
    from tencrop.report.collect import read_run

    recipe = composed(training)
    own = row_learning_keys(recipe)
    by_seed: dict[int, Run] = {}
    # Sorted, so that of two runs with one seed the same one counts on every file system.
    for folder in sorted(folders, key=str):
        try:
            run = read_run(folder)
            config = validate(OmegaConf.create(literal(run.config)), Config)
        except UserError as error:
            on_broken(error)
            continue
        # the 8 hex digits of a folder's name may be another version's or collide, so the settings themselves decide
        if run.is_complete and row_learning_keys(config) == own:
            by_seed.setdefault(run.seed, run)  # a reproduction is no further measurement of its seed
    return recipe, [by_seed[seed] for seed in sorted(by_seed)]


def _run_folders(path: Path) -> list[Path]:
    """Run folders in or below `path`, without those within a run folder, which are its own reproductions."""
    # not collect's function of the same name: importing that module takes a second
    if not path.is_dir():
        raise UserError(f"runs={path}: there is no such folder; train.py makes one below runs/")
    found: list[Path] = []  # sorted, so a run folder is found before those within it
    for manifest in sorted(path.resolve().rglob("manifest.json")):
        folder = manifest.parent
        if (folder / "config.yaml").exists() and not any(parent in found for parent in folder.parents):
            found.append(folder)
    return found

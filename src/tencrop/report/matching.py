"""Finds the finished runs that support each row of a paper's table, and tells why other runs do not.

A run belongs to a row if its training settings equal those that the row's overrides compose. A result of the run
supports the row if it counts the table's images under the row's protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencrop.cli.choices import CONF
from tencrop.config import Config, UserError
from tencrop.tables.lines import Key, Ours
from tencrop.tables.recipes import Words, learning_hashes
from tencrop.tables.schema import ErrorRow, ErrorTable, RowProtocol

if TYPE_CHECKING:
    from tencrop.report.collect import Result, Run

OnBroken = Callable[[UserError], None]


def match_runs(
    tables: Sequence[ErrorTable], paths: Sequence[Path], *, kept: Path, on_broken: OnBroken
) -> dict[Key, Ours]:
    """Our errors for every row with finished and evaluated runs, or ensembles of them, in or below `paths`.

    kept: file that caches learning hashes. Raises UserError for a path that does not exist; a broken run is passed to
    `on_broken` and left out.
    """
    # `reason` tells why a row cannot be reproduced; a row with `delta_of` prints differences, which no run measures
    rows = [(table, row) for table in tables for row in table.rows if row.reason is None and row.delta_of is None]
    folders = [folder for path in paths for folder in _run_folders(path)]
    wanted = [words for _, row in rows for words in (row.words, *(member.words for member in row.members)) if words]
    if not wanted or not folders:
        return {}
    # Select by the hash in the folder's name first: reading a run imports torch, which takes seconds, and most tables
    # have no run.
    hashes = learning_hashes(wanted, kept)
    by_hash: dict[str, list[Path]] = {}
    for folder in folders:
        by_hash.setdefault(folder.name.rpartition("-")[2], []).append(folder)
    runs_of: dict[Words, tuple[Config, list[Run]]] = {}
    for words, learned in hashes.items():
        if learned in by_hash:
            runs_of[words] = _runs(words, by_hash[learned], on_broken)
    if not runs_of:
        return {}
    matched = {}
    for table, row in rows:
        recipe, runs = runs_of.get(row.words or (), (None, []))
        if recipe is not None and (ours := _ours(table, row, recipe, runs)) is not None:
            matched[table.name, row.id] = ours
    ensembles = [(table, row) for table, row in rows if row.members]
    return matched | (_match_ensembles(ensembles, runs_of, paths, on_broken) if ensembles else {})


def refusals(
    facts: dict[str, Any], data: Mapping[str, Any], row: ErrorRow, table: ErrorTable, recipe: Config
) -> list[str]:
    """The reasons why a result does not support a row; empty if it does.

    facts: the content of result.json, of a run that followed `recipe`; data: the `data` section of the run's manifest.
    """
    from tencrop.evaluation.claims import WHOLE_DATA, is_whole
    from tencrop.evaluation.results import differences_from_training

    assert row.protocol is not None
    reasons = []
    if table.data not in WHOLE_DATA:
        reasons.append(f"data={table.data} does not say which images")
    elif facts["data"] != table.data or not is_whole(table.data, data):
        reasons.append(f"not trained on all of {table.data}")
    else:
        expected = table.num_images or WHOLE_DATA[table.data][1]
        if facts["num_images"] != expected:
            reasons.append(f"{facts['num_images']:,} images, not {expected:,}")
    reasons += _other_protocol(facts, row.protocol)
    # Rows are of the last epoch's weights. Choosing a checkpoint by its held-out error is another protocol.
    if facts["selection"] != "last" or facts.get("step") != facts.get("total_steps"):
        reasons.append("not the last weights")
    own = "raw" if recipe.training.ema_decay is None else "ema"
    if facts["weights"] != own:
        reasons.append(f"{facts['weights']} weights, not {own}")
    otherwise = differences_from_training(facts, dataclasses.asdict(recipe))
    if row.protocol.filter is not None:  # _other_protocol has compared the filter with the row's already
        otherwise = [reason for reason in otherwise if not reason.startswith("filter ")]
    return reasons + otherwise


def _other_protocol(facts: dict[str, Any], protocol: RowProtocol) -> list[str]:
    """How the protocol of a result differs from what the paper states; a setting that it leaves open may be any."""
    names = {"name": "protocol", "average": "averaging"}
    reasons = []
    for key, stated in dataclasses.asdict(protocol).items():
        found = facts.get(names.get(key, key), "shorter_side" if key == "resize" else None)
        found = tuple(found) if isinstance(found, list) else found
        # softmax and logits of a single view have the same ranks, so nothing is averaged
        if stated is None or found == stated or (key == "average" and facts["views"] == 1):
            continue
        reasons.append(f"{names.get(key, key)} {_shown(found)}, not {_shown(stated)}")
    return reasons


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _ours(table: ErrorTable, row: ErrorRow, recipe: Config, runs: Sequence[Run]) -> Ours | None:
    """The errors that the runs of a row's recipe measured; None if none of them was evaluated."""
    supporting: dict[tuple[str, str], list[tuple[Run, Result]]] = {}
    others: list[tuple[list[str], Path]] = []
    for run in runs:
        for result in run.valid_results:  # without results of weights that were trained further
            if reasons := refusals(result.facts, run.manifest["data"], row, table, recipe):
                others.append((reasons, run.folder))
            else:  # the paper may leave settings open, and results of different settings must not be averaged
                supporting.setdefault((run.title_of(result), result.source_fingerprint), []).append((run, result))
    if supporting:
        members = max(supporting.values(), key=len)  # the setting with the most seeds
        errors = {k: tuple(100 * result.errors[k] for _, result in members) for k in (1, 5)}
        return Ours(errors, members[0][1].num_images, tuple(run.folder for run, _ in members))
    if not others:
        return None
    reasons, folder = min(others, key=lambda other: len(other[0]))  # the result that is closest to the row
    return Ours({}, 0, (folder,), refused="; ".join(reasons))


def _match_ensembles(
    rows: Sequence[tuple[ErrorTable, ErrorRow]],
    runs_of: Mapping[Words, tuple[Config, Sequence[Run]]],
    paths: Sequence[Path],
    on_broken: OnBroken,
) -> dict[Key, Ours]:
    from tencrop.report.collect import collect_evaluations
    from tencrop.report.ensemble_matching import matched_ensembles, ours_of_ensembles

    evaluations = collect_evaluations(paths, lambda broken: on_broken(broken.error))
    matched = {}
    for table, row in rows:
        supporting, refused = [], []
        found = matched_ensembles(row, {words: runs for words, (_, runs) in runs_of.items()}, evaluations)
        for evaluation, runs in found:
            # An ensemble's result does not record these, and `matched_ensembles` has checked that its members are the
            # last checkpoints of complete runs.
            facts = evaluation.result.facts | {"selection": "last", "step": None, "total_steps": None}
            own = replace(row, protocol=row.members[0].protocol)
            data = [(run.manifest["data"], runs_of[words][0]) for words, run in runs]
            reasons = [reason for one, recipe in data for reason in refusals(facts, one, own, table, recipe)]
            if reasons:
                refused.append((evaluation, list(dict.fromkeys(reasons))))
            else:
                supporting.append(evaluation)
        if supporting:
            matched[table.name, row.id] = ours_of_ensembles(supporting)
        elif refused:
            evaluation, reasons = min(refused, key=lambda one: len(one[1]))
            matched[table.name, row.id] = Ours({}, 0, (evaluation.folder,), refused="; ".join(reasons))
    return matched


def _runs(words: Words, folders: Sequence[Path], on_broken: OnBroken) -> tuple[Config, list[Run]]:
    """The recipe, and the finished runs that follow it: one per seed, sorted by seed."""
    from omegaconf import OmegaConf

    from tencrop.cli.compose import compose_training
    from tencrop.config import learning_keys, validate
    from tencrop.config.documents import literal
    from tencrop.report.collect import read_run

    recipe = compose_training(words, CONF)
    own = learning_keys(recipe)
    by_seed: dict[int, Run] = {}
    for folder in sorted(folders, key=str):
        try:
            run = read_run(folder)
            config = validate(OmegaConf.create(literal(run.config)), Config)
        except UserError as error:
            on_broken(error)
            continue
        # the 8 hex digits of a folder's name may be another version's or collide, so the settings themselves decide
        if run.is_complete and learning_keys(config) == own:
            by_seed.setdefault(run.seed, run)  # a reproduction is no further measurement of its seed
    return recipe, [by_seed[seed] for seed in sorted(by_seed)]


def _run_folders(path: Path) -> list[Path]:
    """Run folders in or below `path`, without those within a run folder, which are its own reproductions."""
    # not collect's function of the same name: that module imports torch
    if not path.is_dir():
        raise UserError(f"runs={path}: there is no such folder; train.py makes one below runs/")
    found: list[Path] = []  # sorted, so a run folder is found before those within it
    for manifest in sorted(path.resolve().rglob("manifest.json")):
        folder = manifest.parent
        if (folder / "config.yaml").exists() and not any(parent in found for parent in folder.parents):
            found.append(folder)
    return found

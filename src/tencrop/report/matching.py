"""Finds the finished runs that support each row of a paper's table, and tells why other runs do not.

A run belongs to a row if it follows the row's recipe (row_runs.py). A result of the run supports the row if it counts
the table's images under the row's protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencrop.config import Config
from tencrop.config.recipes import guesses_of
from tencrop.report.row_runs import OnBroken, RunsOf, runs_of_tables, trainable_rows
from tencrop.tables.lines import Key, Measurement
from tencrop.tables.schema import ErrorRow, ErrorTable, RowProtocol

if TYPE_CHECKING:
    from tencrop.report.collect import Evaluation, Result, Run
    from tencrop.report.ensemble_matching import Matched


def match_runs(
    tables: Sequence[ErrorTable], paths: Sequence[Path], *, kept: Path, on_broken: OnBroken
) -> dict[Key, Measurement]:
    """Our errors for every row with finished and evaluated runs, or ensembles of them, in or below `paths`.

    kept: file that caches learning hashes. Raises UserError for a path that does not exist; a broken run is passed to
    `on_broken` and left out.
    """
    runs_of = runs_of_tables(tables, paths, kept=kept, on_broken=on_broken)
    if not runs_of:
        return {}
    rows = trainable_rows(tables)
    matched = {}
    for table, row in rows:
        if row.training is None or row.training not in runs_of:
            continue
        recipe, runs = runs_of[row.training]
        if (ours := _ours(table, row, recipe, runs)) is not None:
            matched[table.name, row.id] = ours
    ensembles = [(table, row) for table, row in rows if row.members]
    return matched | (_match_ensembles(ensembles, runs_of, paths, on_broken) if ensembles else {})


def refusals(
    facts: dict[str, Any], data: Mapping[str, Any], row: ErrorRow, table: ErrorTable, recipe: Config
) -> list[str]:
    """The reasons why a result does not support a row; empty if it does.

    facts: the content of result.json, of a run that followed `recipe`; data: the `data` section of the run's manifest.
    """
    return [*other_data(facts, data, table), *other_settings(facts, row, recipe)]


def other_settings(facts: dict[str, Any], row: ErrorRow, recipe: Config) -> list[str]:
    """The reasons apart from the images: another protocol, other weights than the last, or another precision."""
    from tencrop.evaluation.results import differences_from_training

    assert row.protocol is not None
    reasons = other_protocol(facts, row.protocol)
    # Rows are of the last epoch's weights. Choosing a checkpoint by its held-out error is another protocol.
    if facts["selection"] != "last" or facts.get("step") != facts.get("total_steps"):
        reasons.append("not the last weights")
    own = "raw" if recipe.training.ema_decay is None else "ema"
    if facts["weights"] != own:
        reasons.append(f"{facts['weights']} weights, not {own}")
    otherwise = differences_from_training(facts, dataclasses.asdict(recipe))
    if row.protocol.filter is not None:  # other_protocol has compared the filter with the row's already
        otherwise = [reason for reason in otherwise if not reason.startswith("filter ")]
    return reasons + otherwise


def trained_on_other_data(data: Mapping[str, Any], table: ErrorTable) -> list[str]:
    """Why a run on these data supports no row of a table, whichever way it is evaluated; `data` as in `refusals`."""
    val = data["splits"]["val"]
    facts = {"data": data["name"], "source_fingerprint": val["source_fingerprint"]}
    # A table on fewer images than the split has evaluates a part of it.
    return other_data(facts | {"num_images": table.num_images or val["num_samples"]}, data, table)


def other_data(facts: Mapping[str, Any], data: Mapping[str, Any], table: ErrorTable) -> list[str]:
    """How the images of a run and its result differ from the table's: by their fingerprints, or by their number."""
    from tencrop.evaluation.whole_data import WHOLE_DATA, is_whole

    if table.data_fingerprint is not None:
        # The result has the fingerprint of the images that it counts; those of the run's own val split may be others.
        found = {"train": data["splits"]["train"]["source_fingerprint"], "val": facts["source_fingerprint"]}
        # A table with fingerprints may be of any folder of images, so its counts prove nothing.
        reasons = [] if facts["data"] == table.data else [f"data={facts['data']}, not {table.data}"]
        reasons += [f"other {split} images" for split in found if found[split] != table.data_fingerprint[split]]
        expected = table.num_images or facts["num_images"]
    elif table.data not in WHOLE_DATA:
        return [f"data={table.data} does not say which images; a table says it with data_fingerprint"]
    elif facts["data"] != table.data or not is_whole(table.data, data):
        return [f"not trained on all of {table.data}"]
    else:
        reasons, expected = [], table.num_images or WHOLE_DATA[table.data][1]
    if facts["num_images"] != expected:
        reasons.append(f"{facts['num_images']:,} images, not {expected:,}")
    return reasons


def other_protocol(facts: dict[str, Any], protocol: RowProtocol) -> list[str]:
    """How the protocol of a result differs from what the paper states; a setting that it leaves open may be any."""
    from tencrop.evaluation.results import is_joint

    names = {"name": "protocol", "average": "averaging"}
    reasons = []
    for key, stated in dataclasses.asdict(protocol).items():
        found = facts.get(names.get(key, key), "shorter_side" if key == "resize" else None)
        # JSON has lists where RowProtocol has tuples.
        found = tuple(found) if isinstance(found, list) else found
        # softmax and logits of a single view of one network have the same ranks, so nothing is averaged
        if stated is None or found == stated or (key == "average" and facts["views"] == 1 and not is_joint(facts)):
            continue
        reasons.append(f"{names.get(key, key)} {_shown(found)}, not {_shown(stated)}")
    return reasons


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _ours(table: ErrorTable, row: ErrorRow, recipe: Config, runs: Sequence[Run]) -> Measurement | None:
    """The errors that the runs of a row's recipe measured; None if none of them was evaluated."""
    # One result per run: a file of the same weights under another name is no further seed.
    supporting: dict[tuple[str, str], dict[Path, tuple[Run, Result]]] = {}
    others: list[tuple[list[str], Path]] = []
    for run in runs:
        for result in run.valid_results:  # without results of weights that were trained further
            if reasons := refusals(result.facts, run.manifest["data"], row, table, recipe):
                others.append((reasons, run.folder))
            else:  # the paper may leave settings open, and results of different settings must not be averaged
                group = supporting.setdefault((run.title_of(result), result.source_fingerprint), {})
                group[run.folder] = run, result
    if supporting:
        members = list(max(supporting.values(), key=len).values())  # the setting with the most seeds
        errors = {k: tuple(100 * result.errors[k] for _, result in members) for k in (1, 5)}
        folders = tuple(run.folder for run, _ in members)
        seeds = tuple(run.seed for run, _ in members)
        return Measurement(errors, members[0][1].num_images, folders, guesses=tuple(guesses_of(recipe)), seeds=seeds)
    if not others:
        return None
    reasons, folder = min(others, key=lambda other: len(other[0]))  # the result that is closest to the row
    return Measurement({}, 0, (folder,), refused="; ".join(reasons))


def _match_ensembles(
    rows: Sequence[tuple[ErrorTable, ErrorRow]],
    runs_of: RunsOf,
    paths: Sequence[Path],
    on_broken: OnBroken,
) -> dict[Key, Measurement]:
    from tencrop.report.collect import collect_evaluations
    from tencrop.report.ensemble_matching import measured_alike, ours_of_ensembles

    evaluations = collect_evaluations(paths, lambda broken: on_broken(broken.error))
    matched = {}
    for table, row in rows:
        supporting, refused = supporting_ensembles(table, row, runs_of, evaluations)
        if supporting:
            recipes = [runs_of[member.training][0] for member in row.members if member.training is not None]
            measured = measured_alike(supporting)
            guesses = dict.fromkeys(guess for recipe in recipes for guess in guesses_of(recipe))
            ours = ours_of_ensembles([evaluation for evaluation, _ in measured])
            # An ensemble of networks of one seed, such as one network under two protocols, has this seed.
            seeds = [{member.run.seed for member in members} for _, members in measured]
            # And no seed twice: in Measurement.by_seed, one would replace the other.
            is_of_one = all(len(of) == 1 for of in seeds) and len(set().union(*seeds)) == len(seeds)
            own = tuple(of.pop() for of in seeds) if is_of_one else ()
            matched[table.name, row.id] = replace(ours, guesses=tuple(guesses), seeds=own)
        elif refused:
            evaluation, reasons = min(refused, key=lambda one: len(one[1]))
            matched[table.name, row.id] = Measurement({}, 0, (evaluation.folder,), refused="; ".join(reasons))
    return matched


def supporting_ensembles(
    table: ErrorTable,
    row: ErrorRow,
    runs_of: RunsOf,
    evaluations: Sequence[Evaluation],
) -> tuple[list[tuple[Evaluation, list[Matched]]], list[tuple[Evaluation, list[str]]]]:
    """The evaluated ensembles that support a row, with their members; and those of its networks that do not, and why.

    Every member must support the row under its own protocol, as `refusals` decides for a single network.
    """
    from tencrop.report.ensemble_matching import matched_ensembles

    supporting, refused = [], []
    found = matched_ensembles(row, {training: runs for training, (_, runs) in runs_of.items()}, evaluations)
    for evaluation, members in found:
        reasons = []
        for training, run, protocol, own in members:
            # An ensemble's result does not record these, and `matched_ensembles` has checked that its members have the
            # last weights of complete runs.
            facts = own | {"selection": "last", "step": None, "total_steps": None}
            one = replace(row, protocol=protocol)
            reasons += refusals(facts, run.manifest["data"], one, table, runs_of[training][0])
        if reasons:
            refused.append((evaluation, list(dict.fromkeys(reasons))))
        else:
            supporting.append((evaluation, members))
    return supporting, refused

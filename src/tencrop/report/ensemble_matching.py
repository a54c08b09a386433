"""Which evaluated ensembles support a row that lists members. Called by matching.py, which has the members' runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tencrop.report.collect import Evaluation, Run
from tencrop.tables.lines import Ours
from tencrop.tables.recipes import Words
from tencrop.tables.schema import ErrorRow, Member


def matched_ensembles(
    row: ErrorRow, runs_of: Mapping[Words, Sequence[Run]], evaluations: Sequence[Evaluation]
) -> list[tuple[Evaluation, list[tuple[Words, Run]]]]:
    """The evaluations whose members are those of the row, so many runs of each recipe, with recipe and run of each.

    Nothing for a row whose members are tested in different ways: no evaluation has such members.
    """
    if len({member.protocol for member in row.members}) > 1:
        return []
    return [(one, runs) for one in evaluations if (runs := _members(one, row.members, runs_of))]


def ours_of_ensembles(evaluations: Sequence[Evaluation]) -> Ours:
    """Each ensemble is one measurement, as each seed of a network is."""
    results = [one.result for one in evaluations]
    errors = {k: tuple(100 * result.errors[k] for result in results) for k in (1, 5)}
    return Ours(errors, results[0].num_images, tuple(one.folder for one in evaluations))


def _members(
    evaluation: Evaluation, members: Sequence[Member], runs_of: Mapping[Words, Sequence[Run]]
) -> list[tuple[Words, Run]]:
    """The runs that an ensemble is of, where these are the row's; else empty."""
    facts = evaluation.result.facts
    if not isinstance(facts["checkpoint"], list):
        return []
    paths = [Path(path).resolve() for path in facts["checkpoint"]]
    wanted: dict[Words, int] = {}
    for member in members:
        assert member.words is not None
        wanted[member.words] = wanted.get(member.words, 0) + member.seeds
    found: list[tuple[Words, Run]] = []
    for words, seeds in wanted.items():
        runs = [run for run in runs_of.get(words, ()) if run.folder / "checkpoints" / "last.ckpt" in paths]
        if len(runs) != seeds:
            return []
        found += [(words, run) for run in runs]
    key = "ema_sha256" if facts["weights"] == "ema" else "weights_sha256"
    hashes = {run.folder / "checkpoints" / "last.ckpt": run.manifest["result"].get(key) for _, run in found}
    is_same = [str(hashes.get(path)) for path in paths] == facts["weights_sha256"].split(" + ")
    return found if len(paths) == len(found) and is_same else []

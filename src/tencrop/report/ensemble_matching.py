"""Finds the evaluated ensembles that support a row of a table whose network is an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tencrop.report.collect import Evaluation, Run
from tencrop.tables.lines import Ours
from tencrop.tables.recipes import Words
from tencrop.tables.schema import ErrorRow, Member


def matched_ensembles(
    row: ErrorRow, runs_of: Mapping[Words, Sequence[Run]], evaluations: Sequence[Evaluation]
) -> list[tuple[Evaluation, list[tuple[Words, Run]]]]:
    """The evaluations with exactly the row's members, each with the recipe and run of every member.

    runs_of: the finished runs of each recipe. A row's members may be several seeds of one recipe.
    """
    # evaluate.py tests all members of an ensemble under one protocol, so no evaluation can match such a row
    if len({member.protocol for member in row.members}) > 1:
        return []
    return [(one, runs) for one in evaluations if (runs := _members(one, row.members, runs_of))]


def ours_of_ensembles(evaluations: Sequence[Evaluation]) -> Ours:
    """The errors of several ensembles of one row; each ensemble is one measurement, like a seed of a single network."""
    results = [one.result for one in evaluations]
    errors = {k: tuple(100 * result.errors[k] for result in results) for k in (1, 5)}
    return Ours(errors, results[0].num_images, tuple(one.folder for one in evaluations))


def _members(
    evaluation: Evaluation, members: Sequence[Member], runs_of: Mapping[Words, Sequence[Run]]
) -> list[tuple[Words, Run]]:
    """The recipe and run of every member of an ensemble; empty unless the members are the row's."""
    facts = evaluation.result.facts
    if not isinstance(facts["checkpoint"], list):
        return []
    # By the hashes of the weights, not by paths: folders get moved, and a run may have been trained again since.
    key = "ema_sha256" if facts["weights"] == "ema" else "weights_sha256"
    hashes = facts["weights_sha256"].split(" + ")
    wanted: dict[Words, int] = {}
    for member in members:
        assert member.words is not None
        wanted[member.words] = wanted.get(member.words, 0) + member.seeds
    found: list[tuple[Words, Run]] = []
    for words, seeds in wanted.items():
        runs = [run for run in runs_of.get(words, ()) if run.manifest["result"].get(key) in hashes]
        if len(runs) != seeds:
            return []
        found += [(words, run) for run in runs]
    return found if len(found) == len(hashes) else []

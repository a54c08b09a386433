"""Finds the evaluated ensembles that support a row of a table whose network is an ensemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tencrop.evaluation.results import PROTOCOL_KEYS, is_joint
from tencrop.report.collect import Evaluation, Run
from tencrop.report.matching import other_protocol
from tencrop.tables.lines import Measurement
from tencrop.tables.schema import ErrorRow, Member, RowProtocol, RowTraining


class Matched(NamedTuple):
    """A member of an evaluated ensemble, with the run and the row's protocol that it stands for."""

    training: RowTraining  # of the row that the run follows
    run: Run
    protocol: RowProtocol | None
    facts: dict[str, Any]  # of result.json, as if the member had been evaluated alone


def matched_ensembles(
    row: ErrorRow, runs_of: Mapping[RowTraining, Sequence[Run]], evaluations: Sequence[Evaluation]
) -> list[tuple[Evaluation, list[Matched]]]:
    """The evaluations whose members are networks of the row's recipes, as many as the row has.

    runs_of: the finished runs of each recipe. A row's members may be several seeds of one recipe, or one network under
    several protocols. Whether each member was evaluated under the row's protocol is for the caller to decide.
    """
    return [(one, members) for one in evaluations if (members := _matched(one, row.members, runs_of))]


def measured_alike(found: Sequence[tuple[Evaluation, list[Matched]]]) -> list[tuple[Evaluation, list[Matched]]]:
    """The most ensembles that were measured in one way; of several files with the same members, the first.

    The paper may leave settings open, and results of different settings must not be averaged.
    """
    groups: dict[tuple[str, str], dict[frozenset[str], tuple[Evaluation, list[Matched]]]] = {}
    for evaluation, members in found:
        result = evaluation.result
        # A set: the same members in another order are the same ensemble.
        own = frozenset(repr((one.run.folder, *(one.facts.get(key) for key in PROTOCOL_KEYS))) for one in members)
        groups.setdefault((result.title, result.source_fingerprint), {}).setdefault(own, (evaluation, members))
    return list(max(groups.values(), key=len, default={}).values())


def ours_of_ensembles(evaluations: Sequence[Evaluation]) -> Measurement:
    """The errors of several ensembles of one row; each ensemble is one measurement, like a seed of a single network."""
    results = [one.result for one in evaluations]
    errors = {k: tuple(100 * result.errors[k] for result in results) for k in (1, 5)}
    return Measurement(errors, results[0].num_images, tuple(one.folder for one in evaluations))


def _matched(
    evaluation: Evaluation, members: Sequence[Member], runs_of: Mapping[RowTraining, Sequence[Run]]
) -> list[Matched]:
    """Every member of an ensemble with its run; empty unless recipes and numbers of networks are the row's."""
    facts = evaluation.result.facts
    if not is_joint(facts):
        return []
    own = [facts | one for one in _members_of(facts)]
    matched: list[Matched] = []
    for training in dict.fromkeys(member.training for member in members):
        assert training is not None
        wanted = [member for member in members if member.training == training]
        found = [(one, run) for one in own if (run := _run_of(one, runs_of.get(training, ()))) is not None]
        seeds_of: Counter[RowProtocol | None] = Counter()
        for member in wanted:
            seeds_of[member.protocol] += member.seeds
        # One network under two protocols is two members; two networks, one under each, are another ensemble.
        num_networks = len({run.folder for _, run in found})
        if len(found) != seeds_of.total() or num_networks != max(seeds_of.values()):
            return []
        matched += _with_protocols(training, found, list(seeds_of.elements()))
    return matched if len(matched) == len(own) else []


def _members_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    # Results of earlier code have no "members": theirs are different networks under one protocol.
    return facts.get("members") or [{"weights_sha256": one} for one in facts["weights_sha256"].split(" + ")]


def _run_of(facts: dict[str, Any], runs: Sequence[Run]) -> Run | None:
    """The run that ended with a member's weights; a run trained again since then ended with others."""
    key = "ema_sha256" if facts["weights"] == "ema" else "weights_sha256"
    return next((run for run in runs if run.manifest["result"].get(key) == facts["weights_sha256"]), None)


def _with_protocols(
    training: RowTraining, found: Sequence[tuple[dict[str, Any], Run]], protocols: list[RowProtocol | None]
) -> list[Matched]:
    """Assign each of the row's protocols to a member that was evaluated under it, the rest in order."""
    left, matched, unmet = list(found), [], []
    for protocol in protocols:
        number = next(
            (n for n, (facts, _) in enumerate(left) if not (protocol and other_protocol(facts, protocol))), None
        )
        if number is None:
            unmet.append(protocol)
        else:
            facts, run = left.pop(number)
            matched.append(Matched(training, run, protocol, facts))
    others = zip(left, unmet, strict=True)
    return matched + [Matched(training, run, protocol, facts) for (facts, run), protocol in others]

"""What is missing in a paper's table: evaluations of finished runs, and rows that nobody can evaluate yet, and why.

evaluate.py table=NAME makes these evaluations and lists these rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tencrop.cli.choices import options_of
from tencrop.config import Config, UserError
from tencrop.config.schema import Average
from tencrop.report.matching import other_settings, refusals, supporting_ensembles, trained_on_other_data
from tencrop.tables.recipes import Words
from tencrop.tables.schema import ErrorRow, ErrorTable, Member, RowProtocol

if TYPE_CHECKING:
    from tencrop.report.collect import Evaluation, Run

RunsOf = Mapping[Words, tuple[Config, Sequence["Run"]]]  # recipe and finished runs for the words of a row


@dataclass(frozen=True)
class Pending:
    """An evaluation that is missing: of one run, or of several as an ensemble."""

    label: str  # of the row
    members: tuple[tuple[Path, tuple[str, ...]], ...]  # checkpoint, and the protocol as words of evaluate.py
    scores: tuple[Path, ...] = ()  # saved scores of all members, where a checkpoint has been deleted
    average: Average = "softmax"  # of these scores


@dataclass(frozen=True)
class Remaining:
    """A row without a number of ours that no evaluation of a finished run can fill."""

    label: str
    reason: str | None  # None: the runs of `trainings` are missing
    trainings: tuple[Words, ...] = ()  # arguments of train.py


def plan_table(
    table: ErrorTable, runs_of: RunsOf, evaluations: Sequence[Evaluation], *, code_sha256: str
) -> tuple[list[Pending], list[Remaining]]:
    """The evaluations that a table's rows still need, and the rows that cannot be evaluated.

    code_sha256: hash of the code that computes scores; results of other code are evaluated again.
    """
    pending: dict[tuple[tuple[Path, tuple[str, ...]], ...], Pending] = {}  # rows that share an evaluation need it once
    remaining = []
    for row in table.rows:
        missing: Remaining | None
        try:
            if row.reason is not None:
                found, missing = list[Pending](), Remaining(row.label, row.reason)
            elif row.members:
                found, missing = _ensembles(table, row, runs_of, evaluations)
            else:
                found, missing = _single(table, row, runs_of, code_sha256)
        except UserError as error:
            found, missing = [], Remaining(row.label, str(error))
        remaining += [] if missing is None else [missing]
        pending |= {one.members: one for one in found if one.members not in pending}
    return list(pending.values()), remaining


def protocol_words(protocol: RowProtocol | None) -> tuple[str, ...]:
    """The words of evaluate.py for a row's protocol; what the paper does not state is left to the run's own settings.

    Raises UserError, with the reason for the row, if evaluate.py does not have this protocol.
    """
    if protocol is None or protocol.name is None:
        raise UserError("the paper does not state its test protocol")
    if protocol.name not in options_of("protocol"):
        raise UserError(f"evaluate.py has no protocol={protocol.name}")
    words = [f"protocol={protocol.name}"]
    for key, value in dataclasses.asdict(protocol).items():
        is_null = key == "side" and protocol.resize == "central_fraction"  # which has no side
        if key == "name" or (value is None and not is_null):
            continue
        text = "null" if value is None else list(value) if isinstance(value, tuple) else value
        words.append(f"protocol.{key}={text}".replace(" ", ""))
    return tuple(words)


def _single(
    table: ErrorTable, row: ErrorRow, runs_of: RunsOf, code_sha256: str
) -> tuple[list[Pending], Remaining | None]:
    assert row.words is not None
    recipe, runs = runs_of.get(row.words, (None, ()))
    if recipe is None or not runs:
        return [], Remaining(row.label, None, _trainings(row.words, runs, row.num_seeds))
    pending, reasons = [], []
    for run in runs:
        is_measured, reason = _state(table, row, recipe, run, code_sha256)
        if reason is not None:
            reasons.append(f"{run.folder.parent.name}/{run.folder.name}: {reason}")
        elif not is_measured:
            pending.append(Pending(row.label, ((_last(run), protocol_words(row.protocol)),)))
    if len(reasons) == len(runs):  # otherwise the other seeds support the row
        return [], Remaining(row.label, "; ".join(reasons), (row.words,))
    num_seeds = len(runs) - len(reasons)
    if trainings := _trainings(row.words, runs, row.num_seeds - num_seeds):
        text = "; ".join([f"{num_seeds} of {row.num_seeds} seeds; train the others", *reasons])
        return pending, Remaining(row.label, text, trainings)
    return pending, None


def _trainings(words: Words, runs: Sequence[Run], num_missing: int) -> tuple[Words, ...]:
    """The words of so many more trainings of a recipe, with seeds that no run has yet."""
    trained = [run.seed for run in runs]
    if not trained and num_missing == 1:
        return (words,)  # with the recipe's own seed
    others = [seed for seed in range(max(0, num_missing) + len(trained)) if seed not in trained]
    return tuple((*words, f"seed={seed}") for seed in others[: max(0, num_missing)])


def _state(table: ErrorTable, row: ErrorRow, recipe: Config, run: Run, code_sha256: str) -> tuple[bool, str | None]:
    """Whether a run has been evaluated as the row requires, and why evaluating it again would support no claim."""
    data = run.manifest["data"]
    own = [result.facts for result in run.valid_results if not other_settings(result.facts, row, recipe)]
    if any(not refusals(facts, data, row, table, recipe) for facts in own):
        # A saved result must do where its checkpoint has been deleted.
        return any(facts.get("code_sha256") == code_sha256 for facts in own) or not _last(run).exists(), None
    reasons = trained_on_other_data(data, table)
    if own and not reasons:  # evaluated, but on other images
        reasons = refusals(own[0], data, row, table, recipe)
    if not reasons and not _last(run).exists():
        reasons = ["checkpoints/last.ckpt was deleted"]
    return False, "; ".join(reasons) or None


def _ensembles(
    table: ErrorTable, row: ErrorRow, runs_of: RunsOf, evaluations: Sequence[Evaluation]
) -> tuple[list[Pending], Remaining | None]:
    """The ensembles that a row still needs, each of other seeds, up to the row's num_seeds."""
    usable: dict[Words, list[Run]] = {}
    trainings: dict[Words, None] = {}
    reasons = []
    sizes = _sizes(row.members)
    for words, size in sizes.items():
        runs = runs_of[words][1] if words in runs_of else ()
        usable[words] = []
        for run in runs:
            if reason := _unusable(table, row, words, runs_of[words][0], run):
                reasons.append(f"{run.folder.parent.name}/{run.folder.name}: {reason}")
            else:
                usable[words].append(run)
        trainings |= dict.fromkeys(_trainings(words, runs, size * row.num_seeds - len(usable[words])))
    supporting = supporting_ensembles(table, row, runs_of, evaluations)[0]
    made = [{member.run.folder for member in members} for _, members in supporting]
    pending = []
    for n in range(min(len(usable[words]) // size for words, size in sizes.items())):
        runs_here = {words: usable[words][n * size : (n + 1) * size] for words, size in sizes.items()}
        if {run.folder for runs in runs_here.values() for run in runs} not in made:
            pending.append(_ensemble(row, runs_here, runs_of))
    pending = pending[: max(0, row.num_seeds - len(made))]
    if len(made) + len(pending) >= row.num_seeds:
        return pending, None
    have = [f"{len(made) + len(pending)} of {row.num_seeds} ensembles; train the others"] if made or pending else []
    return pending, Remaining(row.label, "; ".join([*have, *reasons]) or None, tuple(trainings))


def _ensemble(row: ErrorRow, runs_here: Mapping[Words, Sequence[Run]], runs_of: RunsOf) -> Pending:
    """One ensemble of these runs: of its checkpoints, or of saved scores if a checkpoint has been deleted."""
    members, scores = [], list[Path]()
    for one, seeds in _seeds(row.members):
        assert one.words is not None
        for run in runs_here[one.words][:seeds]:
            members.append((_last(run), protocol_words(one.protocol)))
            scores += _scores(row, one.protocol, runs_of[one.words][0], run)[:1]
    is_complete = all(path.exists() for path, _ in members)
    logits = any(one.protocol is not None and one.protocol.average == "logits" for one in row.members)
    average: Average = "logits" if logits else "softmax"
    return Pending(row.label, tuple(members), () if is_complete else tuple(scores), average)


def _unusable(table: ErrorTable, row: ErrorRow, words: Words, recipe: Config, run: Run) -> str | None:
    """Why a run cannot be a member of a row's ensemble; None if it can."""
    if reasons := trained_on_other_data(run.manifest["data"], table):
        return "; ".join(reasons)
    protocols = [one.protocol for one in row.members if one.words == words]
    if _last(run).exists() or all(_scores(row, protocol, recipe, run) for protocol in protocols):
        return None
    return "checkpoints/last.ckpt was deleted"


def _scores(row: ErrorRow, protocol: RowProtocol | None, recipe: Config, run: Run) -> list[Path]:
    """The saved scores of a run under a member's protocol."""
    if protocol is None:
        return []
    one = replace(row, protocol=protocol)
    return [
        result.scores
        for result in run.valid_results
        if result.scores.exists() and not other_settings(result.facts, one, recipe)
    ]


def _sizes(members: Sequence[Member]) -> dict[Words, int]:
    """The number of networks of each recipe in an ensemble; a network under two protocols is one."""
    sizes: dict[Words, int] = {}
    for one, seeds in _seeds(members):
        assert one.words is not None
        sizes[one.words] = max(seeds, sizes.get(one.words, 0))
    return sizes


def _seeds(members: Sequence[Member]) -> list[tuple[Member, int]]:
    """Every network of an ensemble once, with the number of its seeds."""
    seeds: dict[Member, int] = {}
    for one in members:
        key = replace(one, seeds=1)
        seeds[key] = seeds.get(key, 0) + one.seeds
    return list(seeds.items())


def _last(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"

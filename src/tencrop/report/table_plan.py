"""Lists what a paper's table still lacks: evaluations of finished runs, and rows that need training or have no recipe.

evaluate.py table=NAME runs these evaluations and prints the remaining rows with the reasons.
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
from tencrop.report.row_runs import RunsOf
from tencrop.tables.schema import ErrorRow, ErrorTable, Member, RowProtocol, RowTraining

if TYPE_CHECKING:
    from tencrop.report.collect import Evaluation, Run


@dataclass(frozen=True)
class Pending:
    """A missing evaluation, of one run or of an ensemble of runs."""

    label: str  # of the row
    members: tuple[tuple[Path, tuple[str, ...]], ...]  # checkpoint, and the protocol as arguments of evaluate.py
    scores: tuple[Path, ...] = ()  # saved scores of all members, where a checkpoint has been deleted
    average: Average = "softmax"  # of these scores


@dataclass(frozen=True)
class Remaining:
    """A row that evaluating finished runs cannot complete."""

    label: str
    reason: str | None  # None: only the runs of `trainings` are missing
    trainings: tuple[RowTraining, ...] = ()


def plan_table(
    table: ErrorTable, runs_of: RunsOf, evaluations: Sequence[Evaluation], *, code_sha256: str
) -> tuple[list[Pending], list[Remaining]]:
    """The evaluations that a table's rows still need, and the rows that these do not complete.

    code_sha256: hash of the code that computes scores; results of other code are evaluated again.
    """
    pending: dict[
        tuple[tuple[Path, tuple[str, ...]], ...], Pending
    ] = {}  # by members: an evaluation that several rows share runs once
    remaining = []
    for row in table.rows:
        missing: Remaining | None
        try:
            # The row cannot be trained, whatever runs there are.
            if row.reason is not None:
                found, missing = list[Pending](), Remaining(row.label, row.reason)
            elif row.members:
                found, missing = _ensembles(table, row, runs_of, evaluations)
            else:
                found, missing = _single(table, row, runs_of, code_sha256)
        # From protocol_overrides: the paper does not state the row's protocol. The other rows are evaluated all the
        # same.
        except UserError as error:
            found, missing = [], Remaining(row.label, str(error))
        remaining += [] if missing is None else [missing]
        pending |= {evaluation.members: evaluation for evaluation in found if evaluation.members not in pending}
    return list(pending.values()), remaining


def protocol_overrides(protocol: RowProtocol | None) -> tuple[str, ...]:
    """Arguments of evaluate.py for a row's protocol; keys that the paper does not state keep the run's own settings.

    Raises UserError, with the reason for the row, if evaluate.py does not have this protocol.
    """
    if protocol is None or protocol.name is None:
        raise UserError("the paper does not state its test protocol")
    if protocol.name not in options_of("protocol"):
        raise UserError(f"evaluate.py has no protocol={protocol.name}")
    overrides = [f"protocol={protocol.name}"]
    for key, value in dataclasses.asdict(protocol).items():
        # None otherwise means "not stated", and then the run's own setting is kept.
        is_null = key == "side" and protocol.resize == "central_fraction"  # this resize has no side
        if key == "name" or (value is None and not is_null):
            continue
        text = "null" if value is None else list(value) if isinstance(value, tuple) else value
        overrides.append(f"protocol.{key}={text}".replace(" ", ""))
    return tuple(overrides)


def _single(
    table: ErrorTable, row: ErrorRow, runs_of: RunsOf, code_sha256: str
) -> tuple[list[Pending], Remaining | None]:
    assert row.training is not None
    recipe, runs = runs_of.get(row.training, (None, ()))
    if recipe is None or not runs:
        return [], Remaining(row.label, None, _trainings(row.training, runs, row.num_seeds))
    pending, reasons = [], []
    for run in runs:
        is_measured, reason = _state(table, row, recipe, run, code_sha256)
        if reason is not None:
            reasons.append(f"{run.folder.parent.name}/{run.folder.name}: {reason}")
        elif not is_measured:
            pending.append(Pending(row.label, ((_last(run), protocol_overrides(row.protocol)),)))
    # One training and not num_seeds of them: what refuses every run of the recipe may refuse new ones, too.
    if len(reasons) == len(runs):  # no seed can support the row
        return [], Remaining(row.label, "; ".join(reasons), (row.training,))
    num_seeds = len(runs) - len(reasons)
    if trainings := _trainings(row.training, runs, row.num_seeds - num_seeds):
        text = "; ".join([f"{num_seeds} of {row.num_seeds} seeds; train the others", *reasons])
        return pending, Remaining(row.label, text, trainings)
    return pending, None


def _trainings(training: RowTraining, runs: Sequence[Run], num_missing: int) -> tuple[RowTraining, ...]:
    """`num_missing` more trainings of a recipe, with seeds that no run has yet."""
    trained = [run.seed for run in runs]
    if not trained and num_missing == 1:
        return (training,)  # with the recipe's own seed
    others = [seed for seed in range(max(0, num_missing) + len(trained)) if seed not in trained]
    return tuple(
        replace(training, overrides=(*training.overrides, f"seed={seed}")) for seed in others[: max(0, num_missing)]
    )


def _state(table: ErrorTable, row: ErrorRow, recipe: Config, run: Run, code_sha256: str) -> tuple[bool, str | None]:
    """Whether a run has been evaluated as the row requires, and the reason if no evaluation of it can support the row.

    (False, None): evaluate the run.
    """
    data = run.manifest["data"]
    own = [result.facts for result in run.valid_results if not other_settings(result.facts, row, recipe)]
    if any(not refusals(facts, data, row, table, recipe) for facts in own):
        # Results of other code are computed again, unless the checkpoint has been deleted.
        return any(facts.get("code_sha256") == code_sha256 for facts in own) or not _last(run).exists(), None
    reasons = trained_on_other_data(data, table)
    # An evaluation of the right protocol and weights exists, so its images must be the reason.
    if own and not reasons:  # evaluated, but on other images
        reasons = refusals(own[0], data, row, table, recipe)
    if not reasons and not _last(run).exists():
        reasons = ["checkpoints/last.ckpt was deleted"]
    return False, "; ".join(reasons) or None


def _ensembles(
    table: ErrorTable, row: ErrorRow, runs_of: RunsOf, evaluations: Sequence[Evaluation]
) -> tuple[list[Pending], Remaining | None]:
    """The ensembles that a row still needs, up to its num_seeds. No run is in two of the planned ensembles."""
    from tencrop.report.ensemble_matching import measured_alike

    usable: dict[RowTraining, list[Run]] = {}
    trainings: dict[RowTraining, None] = {}
    reasons = []
    sizes = _sizes(row.members)
    for training, size in sizes.items():
        runs = runs_of[training][1] if training in runs_of else ()
        usable[training] = []
        for run in runs:
            if reason := _unusable(table, row, training, runs_of[training][0], run):
                reasons.append(f"{run.folder.parent.name}/{run.folder.name}: {reason}")
            else:
                usable[training].append(run)
        trainings |= dict.fromkeys(_trainings(training, runs, size * row.num_seeds - len(usable[training])))
    supporting = supporting_ensembles(table, row, runs_of, evaluations)[0]
    finished = [{member.run.folder for member in members} for _, members in measured_alike(supporting)]
    pending = []
    for n in range(min(len(usable[training]) // size for training, size in sizes.items())):
        chosen = {training: usable[training][n * size : (n + 1) * size] for training, size in sizes.items()}
        if {run.folder for runs in chosen.values() for run in runs} not in finished:
            pending.append(_ensemble(row, chosen, runs_of))
    pending = pending[: max(0, row.num_seeds - len(finished))]
    if len(finished) + len(pending) >= row.num_seeds:
        return pending, None
    have = (
        [f"{len(finished) + len(pending)} of {row.num_seeds} ensembles; train the others"]
        if finished or pending
        else []
    )
    return pending, Remaining(row.label, "; ".join([*have, *reasons]) or None, tuple(trainings))


def _ensemble(row: ErrorRow, chosen: Mapping[RowTraining, Sequence[Run]], runs_of: RunsOf) -> Pending:
    """One ensemble of these runs, from their checkpoints, or from saved scores if a checkpoint has been deleted."""
    members, scores = [], list[Path]()
    for member, num_seeds in _seeds(row.members):
        assert member.training is not None
        for run in chosen[member.training][:num_seeds]:
            members.append((_last(run), protocol_overrides(member.protocol)))
            scores += _scores(row, member.protocol, runs_of[member.training][0], run)[:1]
    is_complete = all(path.exists() for path, _ in members)
    logits = any(member.protocol is not None and member.protocol.average == "logits" for member in row.members)
    average: Average = "logits" if logits else "softmax"
    return Pending(row.label, tuple(members), () if is_complete else tuple(scores), average)


def _unusable(table: ErrorTable, row: ErrorRow, training: RowTraining, recipe: Config, run: Run) -> str | None:
    """Why a run cannot be a member of a row's ensemble; None if it can."""
    if reasons := trained_on_other_data(run.manifest["data"], table):
        return "; ".join(reasons)
    protocols = [member.protocol for member in row.members if member.training == training]
    if _last(run).exists() or all(_scores(row, protocol, recipe, run) for protocol in protocols):
        return None
    return "checkpoints/last.ckpt was deleted"


def _scores(row: ErrorRow, protocol: RowProtocol | None, recipe: Config, run: Run) -> list[Path]:
    """The saved scores of a run under a member's protocol."""
    if protocol is None:
        return []
    row_of_member = replace(row, protocol=protocol)
    return [
        result.scores
        for result in run.valid_results
        if result.scores.exists() and not other_settings(result.facts, row_of_member, recipe)
    ]


def _sizes(members: Sequence[Member]) -> dict[RowTraining, int]:
    """The number of networks of each recipe in an ensemble; a network evaluated under two protocols counts once."""
    sizes: dict[RowTraining, int] = {}
    for member, num_seeds in _seeds(members):
        assert member.training is not None
        sizes[member.training] = max(num_seeds, sizes.get(member.training, 0))
    return sizes


def _seeds(members: Sequence[Member]) -> list[tuple[Member, int]]:
    """The distinct members of an ensemble (a recipe under a protocol), each with its total number of seeds."""
    # A row may list one member twice instead of giving seeds: 2.
    seeds: dict[Member, int] = {}
    for member in members:
        key = replace(member, seeds=1)
        seeds[key] = seeds.get(key, 0) + member.seeds
    return list(seeds.items())


def _last(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"

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
from tencrop.report.matching import other_settings, refusals, trained_on_other_data
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

    @property
    def is_ensemble(self) -> bool:
        return len(self.members) > 1


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
        try:
            if row.members:
                found = _ensemble(row, runs_of, evaluations)
            else:
                found = _single(table, row, runs_of, code_sha256)
        except UserError as error:
            found = Remaining(row.label, str(error))
        if isinstance(found, Remaining):
            remaining.append(found)
        else:
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


def _single(table: ErrorTable, row: ErrorRow, runs_of: RunsOf, code_sha256: str) -> list[Pending] | Remaining:
    if row.reason is not None or row.delta_of is not None:
        return Remaining(row.label, row.reason or f"printed as a difference from {row.delta_of}")
    assert row.words is not None
    recipe, runs = runs_of.get(row.words, (None, ()))
    if recipe is None or not runs:
        return Remaining(row.label, None, (row.words,))
    pending, reasons = [], []
    for run in runs:
        is_measured, reason = _state(table, row, recipe, run, code_sha256)
        if reason is not None:
            reasons.append(f"{run.folder.parent.name}/{run.folder.name}: {reason}")
        elif not is_measured:
            pending.append(Pending(row.label, ((_last(run), protocol_words(row.protocol)),)))
    if len(reasons) == len(runs):  # otherwise the other seeds support the row
        return Remaining(row.label, "; ".join(reasons), (row.words,))
    return pending


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


def _ensemble(row: ErrorRow, runs_of: RunsOf, evaluations: Sequence[Evaluation]) -> list[Pending] | Remaining:
    if row.reason is not None:
        return Remaining(row.label, row.reason)
    members, trainings = [], []
    for one, seeds in _seeds(row.members):
        assert one.words is not None
        runs = runs_of.get(one.words, (None, ()))[1]
        trained = [run.seed for run in runs]
        missing = [seed for seed in range(seeds + len(trained)) if seed not in trained][: max(0, seeds - len(runs))]
        trainings += [(*one.words, f"seed={seed}") for seed in missing]
        members += [(_last(run), protocol_words(one.protocol)) for run in runs[:seeds]]
    if trainings:
        return Remaining(row.label, None, tuple(trainings))
    from tencrop.report.ensemble_matching import matched_ensembles

    if matched_ensembles(row, {words: runs for words, (_, runs) in runs_of.items()}, evaluations):
        return []
    return [Pending(row.label, tuple(members))]


def _seeds(members: Sequence[Member]) -> list[tuple[Member, int]]:
    """Every network of an ensemble once, with the number of its seeds."""
    seeds: dict[Member, int] = {}
    for one in members:
        key = replace(one, seeds=1)
        seeds[key] = seeds.get(key, 0) + one.seeds
    return list(seeds.items())


def _last(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"

"""evaluate.py table=calibration weights_dir=DIR: is the prepared data right? Evaluates released weights on it.

Every evaluation is saved when it is done, so the same command continues after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import command_prefix, keys_typed, typed_word
from tencrop.cli.compose import compose_training
from tencrop.config import EvaluateConfig, UserError, own_keys
from tencrop.data.sources.ilsvrc import NUM_IMAGES
from tencrop.evaluation.targets import EvaluationTarget, evaluation_targets
from tencrop.signals import close_at_ctrl_c
from tencrop.tables.reading import read_table
from tencrop.tables.released import (
    CONFIRMED,
    DIFFERS,
    TABLE,
    Released,
    differences,
    lies_within,
    recognized,
    released_weights,
)
from tencrop.tables.schema import ErrorTable
from tencrop.text_tables import aligned

ALLOWED = {"data", "hardware", "tracker", "deterministic"}  # what may be typed beside: it changes no error
NOT_CONFIRMED = "data not confirmed"


class Calibrated(NamedTuple):
    """A file of released weights, and its result.json here."""

    file: Path
    weights: Released
    result: dict[str, Any]

    @property
    def errors(self) -> dict[str, float]:
        """In percent, by column."""
        return {f"top{k}": 100 * self.result[f"top{k}_error"] for k in (1, 5)}


def calibrate(config: EvaluateConfig, overrides: Sequence[str]) -> int:
    """Evaluate the recognized files, and print them beside their publishers' measurement; returns the exit code.

    overrides: the command line as KEY=VALUE. Raises UserError if the folder has no file that is recognized, or for an
    override that a row fixes. Without the full val split there are figures, but no verdict.
    """
    typed = _checked(config, overrides)
    table = read_table(TABLE)
    folder = Path(config.weights_dir or "")
    matched, others = recognized(folder, released_weights(table))
    if not matched:
        names = ", ".join(path.name for path in others[:5]) or "no file of weights"
        raise UserError(
            f"weights_dir={folder}: no released weights are recognized by their name ({names}); keep the names under"
            " which torchvision and timm publish them, listed in conf/released_weights.yaml"
        )
    # All of them before the first evaluation, which takes minutes: a file that cannot be evaluated is refused at once.
    targets = [_target(file, weights, typed) for file, weights in matched]

    from tencrop.commands.evaluate import check_targets, staged_targets
    from tencrop.evaluation.evaluate import evaluate_targets
    from tencrop.evaluation.processes import joined_launched

    for target in targets:
        check_targets([target])
    close_at_ctrl_c()
    found = []
    with joined_launched():  # once: evaluate_targets would join the ranks again for every target
        for (file, weights), target in zip(matched, targets, strict=True):
            # One at a time: several targets in one call would be an ensemble.
            with staged_targets([target]) as local_targets:
                for evaluated in evaluate_targets(local_targets):  # none on other ranks
                    found.append(Calibrated(file, weights, evaluated.result))
    if found:
        print("\n".join([*aligned(_rows(table, found), left=[0, 1]), *_not_recognized(others), verdict(table, found)]))
    return 0


def _checked(config: EvaluateConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides without this command's own keys."""
    if config.table != TABLE:
        raise UserError(f"weights_dir={config.weights_dir}: is for table={TABLE}; give both, or leave it out")
    if not Path(config.weights_dir or "").is_dir():
        raise UserError(f"weights_dir={config.weights_dir}: there is no such folder")
    # This command's own keys mean nothing to compose_training, which knows those of train.py.
    typed = [word for word in overrides if not keys_typed([word]) & own_keys(EvaluateConfig)]
    for word in typed:
        if not all(key.partition(".")[0] in ALLOWED for key in keys_typed([word])):
            raise UserError(f"{word}: the table's rows give network and protocol; leave it out, or leave out table")
    return typed


def _target(file: Path, weights: Released, typed: Sequence[str]) -> EvaluationTarget:
    # compose_training and not the command's own configuration: each file chooses another model and protocol.
    overrides = [*typed, *weights.overrides()]
    (target,) = evaluation_targets(replace(compose_training(overrides, CONF), weights=str(file)), overrides)
    return target


def _rows(table: ErrorTable, found: Sequence[Calibrated]) -> list[tuple[str, ...]]:
    """One row per evaluation, in the table's unit of errors: percent."""
    rows: list[tuple[str, ...]] = [
        ("weights", "published row", "top-1 %", "published", "top-5 %", "published", "n", "")
    ]
    for one in found:
        row, cells = one.weights.row, list[str]()
        for column, error in one.errors.items():
            # Three decimals, like torchvision's and timm's own tables: one image of 50,000 is 0.002 points.
            printed = row is not None and row.printed[column] is not None
            cells += [f"{error:.3f}", f"{table.error(row, column):.3f}" if row is not None and printed else "–"]
        rows.append(
            (
                one.file.name,
                "–" if row is None else row.label,
                *cells,
                f"{one.result['num_images']:,}",
                _remark(table, one),
            )
        )
    return rows


def _remark(table: ErrorTable, one: Calibrated) -> str:
    row = one.weights.row
    if row is None:
        return "no published measurement is known here"
    # No judgement with a guessed resize filter or size, which alone may move the error by more than 0.1 point.
    if unknown := not_stated(one.weights):
        return f"protocol not stated: {', '.join(unknown)}"
    if not is_whole(one):
        return ""
    if lies_within(table, row, one.errors):
        return "within 0.1 point"
    # The larger of the two decides, as in lies_within.
    far = max(differences(table, row, one.errors).values(), key=abs)
    return f"{DIFFERS} by {far:+.3f}"


def not_stated(weights: Released) -> list[str]:
    """What the published measurement does not tell of its protocol."""
    protocol = None if weights.row is None else weights.row.protocol
    return ["protocol"] if protocol is None else protocol.not_stated


def is_whole(one: Calibrated) -> bool:
    """Whether the evaluation is of ImageNet's whole val split."""
    # By the counts, since the fingerprint of ImageNet's files is not published. The errors themselves tell other
    # images.
    return one.result["num_images"] == NUM_IMAGES["val"] and one.result["num_classes"] == 1000


def verdict(table: ErrorTable, found: Sequence[Calibrated]) -> str:
    """One sentence: "data confirmed" if all judged files are within 0.1 point on the whole val split."""
    judged = [one for one in found if one.weights.row is not None and not not_stated(one.weights)]
    num_images = found[0].result["num_images"]
    # Before the verdicts: errors of a subset differ by more than 0.1 point from those of the whole split by chance.
    if not all(map(is_whole, found)):
        return (
            f"no verdict: {num_images:,} images in {found[0].result['num_classes']:,} classes are not the"
            f" {NUM_IMAGES['val']:,} of ImageNet's val split, on which the publishers measured"
        )
    if not judged:
        return "no verdict: none of these files has a published measurement whose protocol is stated"
    far = [one.file.name for one in judged if one.weights.row and not lies_within(table, one.weights.row, one.errors)]
    if far:
        return f"{NOT_CONFIRMED}: {', '.join(far)} of {len(judged)} judged differ by more than 0.1 point"
    return f"{CONFIRMED}: all {len(judged)} judged evaluations are within 0.1 point of their publishers'"


def _not_recognized(others: Sequence[Path]) -> list[str]:
    evaluate = command_prefix("evaluate")
    return [
        f"not recognized by its name: {path.name}; evaluate it with {evaluate} {typed_word('weights', path)} model=NAME"
        for path in others
    ]

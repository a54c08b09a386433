"""Builds the lines of a comparison table: the printed numbers of each row next to ours, formatted as text."""

from __future__ import annotations

import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tencrop.cli.command_line import for_shell
from tencrop.printable import printable
from tencrop.tables.differences import Difference, difference
from tencrop.tables.schema import MEASURED, ErrorRow, ErrorTable, RowProtocol, RowTraining, parse_printed
from tencrop.tables.verdicts import NO_CLAIM, NOT_RUN, Verdict, judge, judge_mean

NONE = "–"  # an empty cell
GUESSED = "*"  # marks a verdict whose band is a guess
UNPAIRED = "†"  # marks a difference of means, without pairs of seeds
SEED = re.compile(r"seed(?P<seed>\d+)(?P<rest>-.+)")  # the name of a run folder

Key = tuple[str, str]  # (table name, row id)


@dataclass(frozen=True)
class Measurement:
    """Our measurement for a row of a table."""

    errors: dict[int, tuple[float, ...]]  # k -> top-k errors in percent, one per seed; empty if refused
    num_images: int
    runs: tuple[Path, ...]  # run folders, by seed
    refused: str | None = None  # why these runs support no claim, such as another protocol
    guesses: tuple[str, ...] = ()  # keys of the recipe whose value the paper does not state
    seeds: tuple[int, ...] = ()  # of the runs; empty for ensembles

    def by_seed(self, column: str) -> dict[Hashable, float]:
        """Errors of a column in percent by seed; those of ensembles, which have no seed, by folder."""
        return dict(zip(self.seeds or self.runs, self.errors[MEASURED[column]], strict=True))


@dataclass(frozen=True)
class Cell:
    """A printed number next to ours, both in the table's unit; NONE for empty fields."""

    column: str
    printed: str
    ours: str = NONE
    difference: str = NONE
    # Wilson's 95% interval for the number of images, for information: the verdict does not use it. Of a difference,
    # Student's t interval over seeds.
    interval: str = NONE
    verdict: str = NONE
    from_base: str = NONE  # in a table of our own: the difference from the base row, with half of its 95% interval
    exceeds_seeds: str = NONE  # yes | no: whether that interval excludes 0


@dataclass(frozen=True)
class Line:
    """A row of the comparison table."""

    row: ErrorRow
    protocol: str
    not_stated: tuple[str, ...]  # protocol settings that the paper does not state
    cells: tuple[Cell, ...]  # one per column
    guesses: tuple[str, ...]  # keys that our measurement had to guess: of the protocol, then of the recipe
    seeds: str
    num_images: str
    run: str  # folders of our runs; otherwise the command that trains one, or the reason why there is none

    @property
    def guessed(self) -> str:
        """The guesses as one text."""
        return ", ".join(self.guesses) or NONE

    def joined(self, field: str) -> str:
        """The values of a field over all cells, joined as "25.6 / 8.1"; a single text if they are equal."""
        if field == "confidence":
            values = list(self.row.confidence.values()) or [NONE]
        else:
            values = [getattr(cell, field) for cell in self.cells]
        # test labels are withheld, so top-5 test never has a verdict, and "reproduced / –" would look like half a
        # success.
        if field == "verdict":  # ignore columns that cannot be measured
            values = [value for value in values if value != NONE] or values
        # Equal texts are printed once: "one transcription / one transcription" says no more.
        return values[0] if len(set(values)) == 1 else " / ".join(values)


def lines_of(table: ErrorTable, matched: Mapping[Key, Measurement]) -> list[Line]:
    """One line per row, in the paper's order. `matched` also has the base rows of differences, of whatever table."""
    return [
        _line(table, row, matched.get((table.name, row.id)), matched.get(base_key(row)) if row.delta_of else None)
        for row in table.rows
    ]


def base_key(row: ErrorRow) -> Key:
    """The row that a difference refers to."""
    assert row.delta_of is not None
    name, _, row_id = row.delta_of.partition(".")
    return name, row_id


def protocol_text(protocol: RowProtocol | None) -> str:
    """The stated part of a protocol in words: "dense 224 of 256, 384 px, softmax"."""
    if protocol is None:
        return NONE
    sides = protocol.side if isinstance(protocol.side, tuple) else (protocol.side,)
    sizes = ", ".join(str(side) for side in sides if side is not None)
    text = f"{protocol.name or 'views not stated'} {protocol.size or ''}".strip()
    if protocol.resize == "central_fraction":
        text += " of the central 87.5%, stretched"
    elif sizes:
        text += f" of {sizes} px" + (", stretched" if protocol.resize == "warp" else "")
    parts = [text, "central square" if protocol.region == "square" else None, protocol.filter, protocol.average]
    return ", ".join(part for part in parts if part)


def _line(table: ErrorTable, row: ErrorRow, ours: Measurement | None, base: Measurement | None) -> Line:
    cells = tuple(_cell(table, row, column, ours, base) for column in table.columns)
    protocols = [member.protocol for member in row.members] or [row.protocol]
    protocol = "; ".join(dict.fromkeys(map(protocol_text, protocols)))
    not_stated = dict.fromkeys(key for one in protocols if one is not None for key in one.not_stated)
    guesses: tuple[str, ...] = ()
    if ours is None or ours.refused is not None:
        seeds, num_images = NONE, NONE
    else:
        seeds, num_images = str(len(ours.runs)), f"{ours.num_images:,}"
        guesses = (*(f"protocol.{key}" for key in not_stated), *ours.guesses)
    return Line(row, protocol, tuple(not_stated), cells, guesses, seeds, num_images, _run(table, row, ours, base))


def _cell(table: ErrorTable, row: ErrorRow, column: str, ours: Measurement | None, base: Measurement | None) -> Cell:
    printed = row.printed[column]
    is_difference = row.delta_of is not None and table.has_printed  # a table of our own shows errors all the same
    if ours is None or (is_difference and base is None):
        return Cell(column, printed or NONE, verdict=NONE if printed is None else NOT_RUN)
    if not table.can_measure(column):
        return Cell(column, printed or NONE)
    if ours.refused is not None or (is_difference and base is not None and base.refused is not None):
        return Cell(column, printed or NONE, verdict=NONE if printed is None else NO_CLAIM)
    found = None
    if base is not None and base.refused is None:
        # Paired by seed where possible: seeds share the order of the images, so part of their noise cancels.
        found = difference(ours.by_seed(column), base.by_seed(column))
    if is_difference:
        assert found is not None
        return _difference_cell(table, row, column, found)
    return _error_cell(table, row, column, ours, found)


def _error_cell(table: ErrorTable, row: ErrorRow, column: str, ours: Measurement, found: Difference | None) -> Cell:
    from tencrop.evaluation.errors import wilson_interval  # imports numpy, which reading our results has done already

    printed, errors = row.printed[column], ours.errors[MEASURED[column]]
    mean = statistics.fmean(errors)
    # wilson_interval takes a count of errors; the mean over seeds gives a fractional one.
    ends = [100 * end for end in wilson_interval(mean / 100 * ours.num_images, ours.num_images)]
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    in_unit = sorted(_in_unit(table, end) for end in ends)  # 100 - x swaps the ends
    against, verdict = _against(table, row, printed, errors)
    exceeds = None if found is None else found.exceeds_seeds
    return Cell(
        column,
        printed or NONE,
        ours=f"{_in_unit(table, mean):.2f}{spread}",
        difference=against,
        interval=f"{in_unit[0]:.2f} – {in_unit[1]:.2f}",
        verdict=_verdict_text(verdict),
        from_base=NONE if found is None else _from_base(table, found),
        exceeds_seeds=NONE if exceeds is None else "yes" if exceeds else "no",
    )


def _difference_cell(table: ErrorTable, row: ErrorRow, column: str, found: Difference) -> Cell:
    """A printed difference between two networks, next to ours."""
    printed, sign = row.printed[column], _sign(table)
    # In accuracies, a better network has the larger number: the sign of a difference turns, its half width does not.
    mean, half = sign * found.mean, found.half_width
    against, verdict = NONE, None
    if printed is not None and not (number := parse_printed(printed)).is_bound:
        against = _signed(mean - number.value)
        verdict = judge_mean(found.mean, found.std, found.num_seeds, printed=sign * number.value,
                             last_digit=number.last_digit, num_runs=row.num_runs)  # fmt: skip
    return Cell(
        column,
        printed or NONE,
        ours=_signed(mean) + ("" if found.std is None else f" ± {found.std:.2f}"),
        difference=against,
        interval=NONE if half is None else f"{_signed(mean - half)} – {_signed(mean + half)}",
        verdict=_verdict_text(verdict),
    )


def _from_base(table: ErrorTable, found: Difference) -> str:
    half = found.half_width
    text = _signed(_sign(table) * found.mean) + ("" if half is None else f" ± {half:.2f}")
    return text if found.is_paired else text + UNPAIRED


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")  # a true minus sign is as wide as the plus


def _verdict_text(verdict: Verdict | None) -> str:
    return NONE if verdict is None else verdict.word + (GUESSED if verdict.is_guess else "")


def _against(
    table: ErrorTable, row: ErrorRow, printed: str | None, errors: tuple[float, ...]
) -> tuple[str, Verdict | None]:
    """Our difference from a printed number in the table's unit, and the verdict on it."""
    if printed is None or parse_printed(printed).is_bound:  # "<10" has no difference
        return NONE, None
    number = parse_printed(printed)
    points = _in_unit(table, statistics.fmean(errors)) - number.value
    # Verdicts compare errors. _in_unit is its own inverse, so it also converts a printed accuracy to an error.
    verdict = judge(errors, _in_unit(table, number.value), last_digit=number.last_digit, num_runs=row.num_runs)
    return _signed(points), verdict


def _in_unit(table: ErrorTable, percent: float) -> float:
    """Convert an error to the table's unit (error or accuracy), or a number in that unit to an error."""
    return percent if table.unit == "error" else 100 - percent


def _sign(table: ErrorTable) -> int:
    """What turns a difference of errors into one in the table's unit, and back."""
    return 1 if table.unit == "error" else -1


def _run(table: ErrorTable, row: ErrorRow, ours: Measurement | None, base: Measurement | None) -> str:
    if ours is None:
        if row.reason is not None:
            return row.reason
        if row.training is not None:
            return _command(row.training)
        return "ensemble of " + ", ".join(f"{member.seeds} x {member.row}" for member in row.members)
    folders = printable(folders_text(ours.runs))
    reasons = [] if ours.refused is None else [ours.refused]
    if row.delta_of is not None and (base is None or base.refused is not None):
        reasons.append(f"{row.delta_of}: {'not run' if base is None else base.refused}")
    return ": ".join([folders, *(["; ".join(reasons)] if reasons else [])])


def _command(training: RowTraining) -> str:
    """The command that trains a row; RUN stands for the run folder that it starts from."""
    # Quoted: a shell may expand the brackets of augmentation.side=[256,512].
    command = " ".join(["python train.py", *map(for_shell, training.overrides)])
    if training.init is None:
        return command
    return f"{command} training.init.checkpoint=RUN, where RUN is a run of {training.init_row}"


def folders_text(folders: Sequence[Path]) -> str:
    """Run folders in short, seeds of one experiment together: "alexnet/seed{0..4}-94cfc4a1", which a shell expands."""
    groups: dict[tuple[str, str], list[int | None]] = {}
    for folder in folders:
        name = SEED.fullmatch(folder.name)
        key = (f"{folder.parent.name}/seed", name["rest"]) if name else (f"{folder.parent.name}/{folder.name}", "")
        groups.setdefault(key, []).append(int(name["seed"]) if name else None)
    return ", ".join(f"{head}{_seeds_text(seeds)}{rest}" for (head, rest), seeds in groups.items())


def _seeds_text(seeds: Sequence[int | None]) -> str:
    numbers = sorted({seed for seed in seeds if seed is not None})
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    # {0..1} would be longer than {0,1} and no clearer.
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"

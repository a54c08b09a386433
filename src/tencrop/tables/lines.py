"""Builds the lines of a comparison table: the printed numbers of each row next to ours, formatted as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tencrop.printable import printable
from tencrop.tables.schema import MEASURED, ErrorRow, ErrorTable, RowProtocol, parse_printed
from tencrop.tables.verdicts import NO_CLAIM, NOT_RUN, Verdict, judge

NONE = "–"  # an empty cell
GUESSED = "*"  # marks a verdict whose band is a guess


Key = tuple[str, str]  # (table name, row id)


@dataclass(frozen=True)
class Ours:
    """Our measurement for a row of a table."""

    errors: dict[int, tuple[float, ...]]  # k -> top-k errors in percent, one per seed; empty if refused
    num_images: int
    runs: tuple[Path, ...]  # run folders, by seed
    refused: str | None = None  # why these runs support no claim, such as another protocol
    guesses: tuple[str, ...] = ()  # keys of the recipe whose value the paper does not state


@dataclass(frozen=True)
class Cell:
    """A printed number next to ours, both in the table's unit; NONE for empty fields."""

    column: str
    printed: str
    ours: str = NONE
    difference: str = NONE
    interval: str = NONE  # Wilson's 95% interval for the number of images; for information, the verdict does not use it
    verdict: str = NONE


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
        if field == "verdict":  # ignore columns that cannot be measured
            values = [value for value in values if value != NONE] or values
        return values[0] if len(set(values)) == 1 else " / ".join(values)


def lines_of(table: ErrorTable, matched: Mapping[Key, Ours]) -> list[Line]:
    """One line per row, in the paper's order."""
    return [_line(table, row, matched.get((table.name, row.id))) for row in table.rows]


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


def _line(table: ErrorTable, row: ErrorRow, ours: Ours | None) -> Line:
    cells = tuple(_cell(table, row, column, ours) for column in table.columns)
    protocols = [member.protocol for member in row.members] or [row.protocol]
    protocol = "; ".join(dict.fromkeys(map(protocol_text, protocols)))
    not_stated = dict.fromkeys(key for one in protocols if one is not None for key in one.not_stated)
    guesses: tuple[str, ...] = ()
    if ours is None or ours.refused is not None:
        seeds, num_images = NONE, NONE
    else:
        seeds, num_images = str(len(ours.runs)), f"{ours.num_images:,}"
        guesses = (*(f"protocol.{key}" for key in not_stated), *ours.guesses)
    return Line(row, protocol, tuple(not_stated), cells, guesses, seeds, num_images, _run(table, row, ours))


def _cell(table: ErrorTable, row: ErrorRow, column: str, ours: Ours | None) -> Cell:
    printed = row.printed[column]
    if ours is None:
        return Cell(column, printed or NONE, verdict=NONE if printed is None else NOT_RUN)
    if not table.can_measure(column):
        return Cell(column, printed or NONE)
    if ours.refused is not None:
        return Cell(column, printed or NONE, verdict=NONE if printed is None else NO_CLAIM)
    from tencrop.evaluation.errors import wilson_interval  # imports torch, which reading our results has done already

    errors = ours.errors[MEASURED[column]]
    mean = statistics.fmean(errors)
    # wilson_interval takes a count of errors; the mean over seeds gives a fractional one.
    ends = [100 * end for end in wilson_interval(mean / 100 * ours.num_images, ours.num_images)]
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    in_unit = sorted(_in_unit(table, end) for end in ends)  # 100 - x swaps the ends
    difference, verdict = _against(table, row, printed, errors)
    return Cell(
        column,
        printed or NONE,
        ours=f"{_in_unit(table, mean):.2f}{spread}",
        difference=difference,
        interval=f"{in_unit[0]:.2f} – {in_unit[1]:.2f}",
        verdict=NONE if verdict is None else verdict.word + (GUESSED if verdict.is_guess else ""),
    )


def _against(
    table: ErrorTable, row: ErrorRow, printed: str | None, errors: tuple[float, ...]
) -> tuple[str, Verdict | None]:
    """Our difference from a printed number in the table's unit, and the verdict on it."""
    if printed is None or parse_printed(printed).is_bound:  # "<10" has no difference
        return NONE, None
    number = parse_printed(printed)
    difference = _in_unit(table, statistics.fmean(errors)) - number.value
    # Verdicts compare errors. _in_unit is its own inverse, so it also converts a printed accuracy to an error.
    verdict = judge(errors, _in_unit(table, number.value), last_digit=number.last_digit, num_runs=row.num_runs)
    return f"{difference:+.2f}".replace("-", "−"), verdict  # a true minus sign is as wide as the plus


def _in_unit(table: ErrorTable, percent: float) -> float:
    """Convert an error to the table's unit (error or accuracy), or a number in that unit to an error."""
    return percent if table.unit == "error" else 100 - percent


def _run(table: ErrorTable, row: ErrorRow, ours: Ours | None) -> str:
    if ours is None:
        if row.reason is not None:
            return row.reason
        if row.words is not None:
            return f"python train.py {' '.join(row.words)}"
        return "ensemble of " + ", ".join(f"{member.seeds} x {member.row}" for member in row.members)
    folders = ", ".join(printable(f"{folder.parent.name}/{folder.name}") for folder in ours.runs)
    return folders if ours.refused is None else f"{folders}: {ours.refused}"

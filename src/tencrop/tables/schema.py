"""A paper's error table as values: what reading.py makes of a file of conf/errors, and render.py prints."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import NamedTuple

# Errors that tables print, and how their columns are called. evaluate.py measures only top1 and top5 of the validation
# split: test labels are withheld, training errors are not evaluated, and ReaL labels are not at hand.
COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "test_top5": "top-5 test",
    "train_top1": "top-1 train",
    "real_top1": "top-1 ReaL",
}
MEASURED = {"top1": 1, "top5": 5}  # column -> k

# How well a printed number is known, the best first.
CONFIDENCES = (
    "source material",  # printed in the material at hand
    "authors' code",  # their repository or README, read
    "two transcriptions",  # the paper, by two that agree
    "one transcription",
    "four third parties",
    "three third parties",
    "two third parties",
    "third party",  # a copy or quotation by others
    "memory, unverified",
)
PRINTED = re.compile(r"[<>~]?[+-]?\d{1,3}(\.(?P<decimals>\d{1,4}))?(±\d+(\.\d+)?)?")


class Printed(NamedTuple):
    """A printed number in percent, of the table's unit."""

    value: float
    last_digit: float  # one unit of it: 0.1 for 25.6, 0.01 for 25.60
    is_bound: bool  # printed with <, > or ~, so that no difference is counted from it


def parse_printed(text: str) -> Printed:
    """ "25.6", "78.82±0.07" (of several runs) or ">+1" as a number; ValueError for anything else."""
    found = PRINTED.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is no printed number such as "25.6", "78.82±0.07" or "+1.4"')
    number = text.partition("±")[0].lstrip("<>~")
    return Printed(float(number), 10.0 ** -len(found["decimals"] or ""), text[0] in "<>~")


@dataclass(frozen=True)
class RowProtocol:
    """How a paper tests, as far as it states it: None stands for what it does not state."""

    name: str | None
    side: int | tuple[int, ...] | None  # pixels
    size: int | None  # pixels
    region: str | None
    resize: str | None  # shorter_side | warp (to side x side) | central_fraction (0.875 of both sides, to size x size)
    filter: str | None
    average: str | None

    @property
    def not_stated(self) -> list[str]:
        """The keys that matter and that the paper leaves open; whoever fills the row guesses them."""
        idle = {"average"} if self.name == "center" else set()
        idle |= {"side"} if self.resize == "central_fraction" else set()
        return [field.name for field in fields(self) if getattr(self, field.name) is None and field.name not in idle]


@dataclass(frozen=True)
class Member:
    """A row whose network is part of an ensemble."""

    table: str
    row: str
    seeds: int  # so many networks that differ in the seed alone
    protocol: RowProtocol | None
    words: tuple[str, ...] | None
    cannot: str | None


@dataclass(frozen=True)
class ErrorRow:
    """A row as printed, and how its number is obtained."""

    id: str
    label: str
    printed: dict[str, str | None]  # by column, as printed; None where nothing is
    confidence: dict[str, str]  # by column, of CONFIDENCES
    words: tuple[str, ...] | None  # what stands behind train.py; None where nobody can train it
    cannot: str | None  # why not
    protocol: RowProtocol | None
    members: tuple[Member, ...]  # of an ensemble, else empty
    delta_of: str | None  # TABLE.ID that the printed numbers are differences from
    num_runs: int  # that the printed number is the mean of

    @property
    def reason(self) -> str | None:
        """Why the row cannot be filled by training; None where it can."""
        if self.cannot is not None or not self.members:
            return self.cannot
        missing = [f"{member.row}: {member.cannot}" for member in self.members if member.cannot is not None]
        return missing[0] if missing else None


@dataclass(frozen=True)
class ErrorTable:
    """A printed table: a file of conf/errors."""

    name: str  # of the file
    title: str
    source: str
    data: str  # a data.name, or one of reading.FOREIGN_DATA
    split: str  # val | test
    unit: str  # error | accuracy, as printed; percent
    columns: tuple[str, ...]  # of COLUMNS
    num_images: int | None  # that the errors are counted over; None: all of the split
    note: str | None
    rows: tuple[ErrorRow, ...]

    def error(self, row: ErrorRow, column: str) -> float:
        """What the row prints in a column, as an error in percent."""
        printed = row.printed[column]
        assert printed is not None, (self.name, row.id, column)
        value = parse_printed(printed).value
        return value if self.unit == "error" else 100 - value

    def can_measure(self, column: str) -> bool:
        """Whether evaluate.py gives this column of this table."""
        return column in MEASURED and self.split == "val"

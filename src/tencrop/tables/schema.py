"""Data types for a paper's error table: reading.py creates them from a file of conf/errors, render.py prints them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import NamedTuple

# Columns of printed tables, with their titles. evaluate.py measures only top1 and top5 on the validation split: test
# labels are withheld, training errors are not evaluated, and ReaL labels (Beyer et al. 2020) are not supported.
COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "test_top5": "top-5 test",
    "train_top1": "top-1 train",
    "real_top1": "top-1 ReaL",
}
MEASURED = {"top1": 1, "top5": 5}  # column -> k

# How a printed number reached us, most reliable first.
CONFIDENCES = (
    "source material",  # the printed table itself was read
    "authors' code",  # the authors' repository or README was read
    "two transcriptions",  # two transcriptions of the paper that agree
    "one transcription",
    "four third parties",
    "three third parties",
    "two third parties",
    "third party",  # a copy or quotation by others
    "memory, unverified",
)
Overrides = tuple[str, ...]  # arguments of train.py, each KEY=VALUE
PRINTED = re.compile(r"[<>~]?[+-]?\d{1,3}(\.(?P<decimals>\d{1,4}))?(±\d+(\.\d+)?)?")


class Printed(NamedTuple):
    """A printed number in percent, in the table's unit."""

    value: float
    last_digit: float  # one unit of the last digit: 0.1 for 25.6, 0.01 for 25.60
    is_bound: bool  # printed with <, > or ~, so that a difference from it has no meaning


def parse_printed(text: str) -> Printed:
    """Parse "25.6", "78.82±0.07" (mean of several runs) or ">+1"; raises ValueError for anything else."""
    found = PRINTED.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is not a printed number such as "25.6", "78.82±0.07" or "+1.4"')
    number = text.partition("±")[0].lstrip("<>~")
    return Printed(float(number), 10.0 ** -len(found["decimals"] or ""), text[0] in "<>~")


@dataclass(frozen=True)
class RowTraining:
    """How train.py trains the network of a row."""

    overrides: Overrides  # arguments of train.py, without training.init.checkpoint
    init: RowTraining | None = None  # the training whose finished run it starts from; None: the seed draws all weights
    init_row: str | None = field(default=None, compare=False)  # `init` in short: TABLE.ID of its row, or arguments


@dataclass(frozen=True)
class RowProtocol:
    """A paper's test protocol; None for settings that the paper does not state."""

    name: str | None
    side: int | tuple[int, ...] | None  # pixels
    size: int | None  # pixels
    region: str | None
    resize: str | None  # shorter_side | warp (to side x side) | central_fraction (0.875 of both sides, to size x size)
    filter: str | None
    average: str | None

    @property
    def not_stated(self) -> list[str]:
        """The relevant settings that the paper does not state, and that a reproduction has to guess."""
        idle = {"average"} if self.name == "center" else set()  # one view has no average
        idle |= {"side"} if self.resize == "central_fraction" else set()  # the crop is resized directly to `size`
        return [field.name for field in fields(self) if getattr(self, field.name) is None and field.name not in idle]


@dataclass(frozen=True)
class Member:
    """A row whose network is a member of an ensemble."""

    table: str
    row: str
    seeds: int  # number of networks in the ensemble that differ only in the seed
    protocol: RowProtocol | None
    training: RowTraining | None
    cannot: str | None


@dataclass(frozen=True)
class ErrorRow:
    """A row as printed, and how to obtain our number for it."""

    id: str
    label: str
    printed: dict[str, str | None]  # by column, as printed; None if nothing is printed
    confidence: dict[str, str]  # by column with a printed number, one of CONFIDENCES
    model: str | None  # file of conf/model with its network; None if there is none, or only its experiment tells
    training: RowTraining | None  # None if it cannot be trained
    cannot: str | None  # the reason why it cannot be trained
    protocol: RowProtocol | None
    members: tuple[Member, ...]  # empty unless the row is an ensemble
    # TABLE.ID of the base row. The printed numbers of the row are differences from it; a table of our own measurements
    # prints errors, and the difference beside them.
    delta_of: str | None
    num_runs: int  # number of runs whose mean is printed
    num_seeds: int  # number of runs of ours (ensembles, if it has members) that the row asks for

    @property
    def reason(self) -> str | None:
        """Why the row cannot be reproduced by training; None if it can."""
        if self.cannot is not None or not self.members:
            return self.cannot
        missing = [f"{member.row}: {member.cannot}" for member in self.members if member.cannot is not None]
        return missing[0] if missing else None


@dataclass(frozen=True)
class ErrorTable:
    """A printed table, read from a file of conf/errors."""

    name: str  # of the file, without .yaml
    title: str
    source: str
    data: str  # a data.name, or one of checks.FOREIGN_DATA
    split: str  # val | test
    unit: str  # error | accuracy, as printed; percent
    columns: tuple[str, ...]  # of COLUMNS
    num_images: int | None  # number of images that the errors refer to; None: the whole split
    # source_fingerprint of each split, as in the manifest of the prepared data; None: all of `data` by its counts
    data_fingerprint: dict[str, str] | None
    note: str | None
    rows: tuple[ErrorRow, ...]

    def error(self, row: ErrorRow, column: str) -> float:
        """The number that the row prints in a column, as an error in percent."""
        return float(self.error_text(row, column))

    def error_text(self, row: ErrorRow, column: str) -> str:
        """Likewise as text, with as many decimals as are printed."""
        printed = row.printed[column]
        assert printed is not None, (self.name, row.id, column)
        value, last_digit, _ = parse_printed(printed)
        decimals = 0 if last_digit == 1 else len(f"{last_digit:.4f}".rstrip("0")) - 2
        return f"{value if self.unit == 'error' else 100 - value:.{decimals}f}"

    @property
    def has_printed(self) -> bool:
        """Whether the table prints a number; one of our own measurements prints none."""
        return any(number is not None for row in self.rows for number in row.printed.values())

    def can_measure(self, column: str) -> bool:
        """Whether evaluate.py measures this column of this table."""
        return column in MEASURED and self.split == "val"

"""Constraints on the value of a key. schema.py attaches them to its fields with `Annotated`; build.py checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a number, with pydantic's names: gt is >, ge is >=, lt is <, le is <=.

    `hint` ends the message that refuses a value: a usual value, or the reason for the limit.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    hint: str = ""

    def contain(self, number: float) -> bool:
        return (
            (self.gt is None or number > self.gt)
            and (self.ge is None or number >= self.ge)
            and (self.lt is None or number < self.lt)
            and (self.le is None or number <= self.le)
        )


class Interval(Bounds):
    """A number within the bounds."""

    def allows(self, value: float) -> bool:
        return self.contain(value)

    def __str__(self) -> str:
        """Completes "must be a number ..."."""
        if self.ge is not None and (self.lt is not None or self.le is not None):
            return f"in [{self.ge}, {self.lt})" if self.le is None else f"in [{self.ge}, {self.le}]"
        parts = [f"above {self.gt}"] if self.gt is not None else [f"{self.ge} or above"] if self.ge is not None else []
        parts += [f"below {self.lt:,}"] if self.lt is not None else []
        parts += [f"at most {self.le:,}"] if self.le is not None else []
        return " and ".join(parts)


class LowHigh(Bounds):
    """A list [low, high] of two numbers within the bounds, low <= high."""

    def allows(self, value: Sequence[float]) -> bool:
        # low = high is allowed: a fixed side or area is a range of one value.
        return len(value) == 2 and value[0] <= value[1] and all(map(self.contain, value))

    def __str__(self) -> str:
        lower = f"{self.gt} < " if self.gt is not None else f"{self.ge} <= " if self.ge is not None else ""
        upper = f" < {self.lt:,}" if self.lt is not None else f" <= {self.le:,}" if self.le is not None else ""
        return f"[low, high] with {lower}low <= high{upper}"


@dataclass(frozen=True)
class Length:
    """A list of exactly `length` elements."""

    length: int
    hint: str = ""

    def allows(self, value: Sequence[object]) -> bool:
        return len(value) == self.length


@dataclass(frozen=True)
class Increasing:
    """A list of numbers, each larger than the one before."""

    hint: str = ""

    def allows(self, value: Sequence[float]) -> bool:
        return all(one < other for one, other in pairwise(value))


Constraint = Interval | LowHigh | Length | Increasing


@dataclass(frozen=True)
class UsedIf:
    """The key needs a value if `selector`, a key beside it, is one of `choices`, and must be null otherwise.

    A value without effect is refused because it would be recorded with the run, and would enter its learning hash.
    """

    selector: str
    choices: tuple[str, ...]

    def __init__(self, selector: str, *choices: str) -> None:
        # The generated __init__ of a frozen dataclass cannot take *choices, with which a declaration reads better.
        object.__setattr__(self, "selector", selector)
        object.__setattr__(self, "choices", choices)

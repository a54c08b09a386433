"""Select tensors of a network by patterns of their names, for training.freeze and training.init.only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from tencrop.config import UserError


def matching_names(patterns: Sequence[str], names: Collection[str], *, key: str, network: str) -> set[str]:
    """The names that match any pattern; `*` stands for any characters, `?` for one, as in a shell.

    Raises UserError, which names `key` and `network`, for a pattern that matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            examples = ", ".join(list(names)[:2])
            raise UserError(f"{key}: {pattern} matches no tensor of {network}; its names are such as {examples}")
        found |= matches
    return found

"""What the chosen experiment says about itself: the first line that a run prints, and the values it had to guess."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from tencrop.config.launcher import is_first_process
from tencrop.config.schema import Config, UserError


def recipe_line(config: Config) -> str | None:
    """The line with which train.py begins: the experiment, its source, and how far the source leaves it open.

    None for a run of earlier code, which recorded no recipe.
    """
    recipe = config.recipe
    if recipe is None:
        return None
    counts = (_counted(recipe.guesses, "guess", "guesses"), _counted(recipe.differs, "difference", "differences"))
    parts = [f"experiment={recipe.experiment or 'null'}", recipe.source, counts[0] if recipe.source else None]
    parts += [counts[1] if recipe.differs else None]
    clauses = [", ".join(part for part in parts if part)]
    clauses += [f"{word} replaces its {word.partition('=')[0]}" for word in recipe.replaced]
    clauses += [recipe.note] if recipe.note else []
    return "recipe: " + "; ".join(clauses)


def print_recipes(configs: Iterable[Config]) -> None:
    """Print the line of each configuration, on rank 0 only; equal lines once."""
    if is_first_process():
        for line in dict.fromkeys(map(recipe_line, configs)):
            if line is not None:
                print(line, flush=True)


def guesses_of(config: Config) -> list[str]:
    """The keys whose value the source of the recipe does not state; empty for a run of earlier code."""
    return [] if config.recipe is None else config.recipe.guesses


def check_guesses(config: Config, keys: Collection[str]) -> None:
    """Raise UserError if a guess of the recipe is not among `keys`, or not an entry of model.kwargs."""
    # Entries of model.kwargs are no keys of the schema: each network takes its own.
    known = {*keys, *(f"model.kwargs.{name}" for name in config.model.kwargs)}
    for key in guesses_of(config):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "correct it"
            raise UserError(f"recipe.guesses: {key}: there is no such key; {hint}")


def _counted(items: Collection[str], one: str, several: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else several}"

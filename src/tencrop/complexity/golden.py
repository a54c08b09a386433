"""Committed counts of every network of conf/model: the source of docs/models.md and the reference of the tests.

    python -m tencrop.complexity.golden    counts all networks again, writes golden.json and docs/models.md

tests/complexity/test_golden.py fails if a network's counts differ from golden.json.
"""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import json
from pathlib import Path

from tencrop.complexity.networks import complexity_of_file, model_files
from tencrop.complexity.render import short, totals
from tencrop.files import atomic_write
from tencrop.text_tables import aligned, csv_table, markdown_table

GOLDEN = Path(__file__).with_name("golden.json")
# the repository's root; an installed package has no docs/, so that main() is for a checkout only
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "models.md"
# part of docs/models.md: after a change, run the command above, or the test of the document fails
HEADER = """\
# Networks

Every file of `conf/model`, for one image of the size that `train.py model=NAME` uses, in evaluation. Parameters that
only training reads (auxiliary heads) are not among them. Multiply-adds: half of what is often called FLOPs; units:
outputs of layers with weights. `python -m tencrop.complexity model=NAME` shows the layers, `sizes=NAME` the papers'
own numbers beside these. Written by `python -m tencrop.complexity.golden`, checked by the tests.

"""
COLUMNS = ("model", "pixels", "parameters", "multiply-adds", "units")


def golden_counts() -> dict[str, dict[str, int]]:
    """Read the committed counts, by model file."""
    return json.loads(GOLDEN.read_text())


def counts_of(name: str) -> dict[str, int]:
    """Count the network of a model file with the current code, at its own image size."""
    return totals(complexity_of_file(name))


def golden_text(counts: dict[str, dict[str, int]]) -> str:
    """Format as JSON, sorted, one network per line, so that a diff names the networks that changed."""
    lines = [f" {json.dumps(name)}: {json.dumps(counts[name])}" for name in sorted(counts)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rows(counts: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    """Format a row of COLUMNS for every network."""
    return [
        (name, str(c["image_size"]), f"{c['parameters']:,}", f"{c['mult_adds']:,}", short(c["units"]))
        for name, c in sorted(counts.items())
    ]


def markdown(counts: dict[str, dict[str, int]]) -> str:
    """Format all networks as a Markdown table."""
    return markdown_table(COLUMNS, rows(counts), left=[0])


def terminal(counts: dict[str, dict[str, int]]) -> str:
    """Format all networks as aligned text."""
    return "".join(f"{line}\n" for line in aligned([COLUMNS, *rows(counts)], left=[0]))


def csv_text(counts: dict[str, dict[str, int]]) -> str:
    """Format all networks as CSV with exact counts."""
    names = list(next(iter(counts.values())))
    return csv_table(["model", *names], ([model, *(c[name] for name in names)] for model, c in sorted(counts.items())))


def main() -> None:
    """Count all networks and write both files."""
    # Counted completely before either file is written: they must not disagree.
    counts = {name: counts_of(name) for name in model_files()}
    DOCUMENT.parent.mkdir(exist_ok=True)
    for path, text in ((GOLDEN, golden_text(counts)), (DOCUMENT, HEADER + markdown(counts))):
        atomic_write(path, text.encode())
        print(path)


if __name__ == "__main__":
    main()

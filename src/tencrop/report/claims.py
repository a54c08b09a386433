"""Finds the rows of conf/errors that a run may be compared with: those whose recipe it follows, on all of their data.

A run's name decides nothing: each row's configuration is composed, and its learning keys are compared with the run's.
Called by report/collect.py, report/tables.py and export/card.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tencrop.cli.choices import CONF
from tencrop.config import Config, UserError, learning_keys, validate
from tencrop.config.documents import literal
from tencrop.config.yaml_files import read_yaml_file, yaml_text
from tencrop.report.matching import refusals, trained_on_other_data
from tencrop.tables.reading import ERRORS, read_table, table_names
from tencrop.tables.recipes import composed
from tencrop.tables.schema import CONFIDENCES, MEASURED, ErrorRow, ErrorTable

if TYPE_CHECKING:
    from tencrop.report.collect import Result, Run


@dataclasses.dataclass(frozen=True)
class Claim:
    """A row of a table that runs of its recipe may be compared with."""

    table: ErrorTable
    row: ErrorRow
    recipe: Config

    @property
    def source(self) -> str:
        """The paper and the table."""
        return f"{self.table.source}: {self.table.title}"

    def error_text(self, k: int) -> str | None:
        """The printed top-k error in percent, with the printed number of decimals; None if none is printed."""
        column = next(column for column, measured_k in MEASURED.items() if measured_k == k)
        printed = self.row.printed.get(column)
        return None if printed is None else self.table.error_text(self.row, column)

    def is_supported_by(self, run: Run, result: Result) -> bool:
        """Whether the run is complete, and the result has the row's protocol, images, weights and precision."""
        data = run.manifest["data"]
        return run.is_complete and not refusals(result.facts, data, self.row, self.table, self.recipe)


def claims_of_run(config: Mapping[str, Any], data: Mapping[str, Any], errors: Path = ERRORS) -> list[Claim]:
    """The rows with the recipe and the data of a run, most reliable printed numbers first.

    config: the content of its config.yaml; data: the "data" section of its manifest. Empty for a configuration that is
    not valid in this version of the code. Raises UserError for a mistake in a file of `errors`.
    """
    try:
        # By names first, so that most runs cost no composition of a recipe at all.
        candidates = _rows(errors, config["data"]["name"], config["model"]["name"])
        rows = [(table, row) for table, row in candidates if not trained_on_other_data(data, table)]
    # The configuration of an earlier version, or of a stranger, may lack a section.
    except (KeyError, TypeError):
        return []
    if not rows:
        return []  # most runs: no table has their network and data
    try:
        own = learning_keys(validate(OmegaConf.create(literal(dict(config))), Config))
    except (UserError, KeyError, TypeError):
        return []
    found = []
    for table, row in rows:
        assert row.training is not None
        recipe = _composed(row.training)
        if learning_keys(recipe) == own:
            found.append(Claim(table, row, recipe))
    return sorted(found, key=lambda claim: min(map(CONFIDENCES.index, claim.row.confidence.values())))


def claims_of_runs(runs: Sequence[Run]) -> list[Claim]:
    """The claims that all of these runs share, such as runs of one experiment with several seeds."""
    first, *others = [claims_of_run(run.config, run.manifest["data"], ERRORS) for run in runs]
    return [claim for claim in first if all(claim in claims for claims in others)]


def _rows(errors: Path, data: str, network: str) -> Iterator[tuple[ErrorTable, ErrorRow]]:
    """The rows with a printed val error of a single network that a run of this network on these data may support."""
    for table in _tables(errors, data):
        for row in table.rows:
            is_printed = any(row.printed.get(column) is not None for column in MEASURED)
            if row.training is None or row.delta_of is not None or table.split != "val" or not is_printed:
                continue
            # One run does not tell whether its initial weights are those of the row's source; matching.py finds out.
            if row.training.init is not None:
                continue
            # Composing a row takes about 0.1 s, so rows of other networks are left out by name.
            if row.model is None or _network(row.model) == network:
                yield table, row


@cache
def _tables(errors: Path, data: str) -> list[ErrorTable]:
    # Search the text before parsing: reading and checking all files takes 0.8 s, and most data sets have few tables.
    line = re.compile(rf"^data: {re.escape(data)}\b", re.MULTILINE)
    return [read_table(name, errors) for name in table_names(errors) if line.search(yaml_text(errors / f"{name}.yaml"))]


@cache
def _network(model: str) -> str:
    """The name of the network in a file of conf/model; it may differ from the name of the file."""
    content = read_yaml_file(CONF / "model" / f"{model}.yaml")
    return str(content.get("model", content)["name"])  # below `model:` where the file sets other groups too


_composed = cache(composed)  # a page asks for the same rows once per run

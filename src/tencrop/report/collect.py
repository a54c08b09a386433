"""Finds run folders, and results that belong to none, and reads what the report needs of them.

Called by report.py; touches neither data nor weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tencrop.config import Config, UserError
from tencrop.config.run_config import (
    is_run_folder,
    read_config,
)
from tencrop.evaluation.claims import claiming_recipe_of_run
from tencrop.evaluation.results import load_result, measured_otherwise, protocol_label, result_name
from tencrop.evaluation.targets import EVALUATIONS
from tencrop.records.run_folder import read_run_manifest
from tencrop.training.metric_rows import read_rows

TOP = (1, 5)
RUNS = Path("runs")  # where train.py writes unless told otherwise


@dataclass(frozen=True)
class Result:
    """The errors of some weights under one protocol (*.result.json, written by evaluate.py)."""

    protocol: str  # its name
    label: str  # protocol, sizes and average in words
    average: str  # softmax | logits
    is_ema: bool  # of the averaged weights
    is_best: bool  # of the checkpoint that was best on the minival, not of the last one
    errors: dict[int, float]  # k -> top-k error, a fraction
    num_images: int
    weights_sha256: str
    source_fingerprint: str
    scores: Path  # the class scores of every image
    facts: dict[str, Any]  # all that result.json says

    @property
    def title(self) -> str:
        """The label, marked where the weights are not the last epoch's own."""
        marks = [*(["EMA"] if self.is_ema else []), *(["best on minival"] if self.is_best else [])]
        return f"{self.label} ({', '.join(marks)})" if marks else self.label


@dataclass(frozen=True)
class Run:
    """What a run folder says of itself."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    results: tuple[Result, ...]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def is_complete(self) -> bool:
        return self.manifest["result"]["status"] == "complete"

    @property
    def valid_results(self) -> list[Result]:
        """Results of the final weights and of the best; those of weights since trained further are left out."""
        if not self.is_complete:
            return list(self.results)
        final = {self.manifest["result"][key] for key in ("weights_sha256", "ema_sha256")}
        return [
            result
            for result in self.results
            if (self._is_of_best(result) if result.is_best else result.weights_sha256 in final)
        ]

    def _is_of_best(self, result: Result) -> bool:
        """Whether no validation since was better; so, too, where the log does not say."""
        rows = [row for row in self.metrics if row["split"] == "minival" and "top1_error" in row]
        best = min(rows, key=lambda row: row["top1_error"], default={})  # of equals the first, as best.ckpt is
        step = best.get("step")
        return step is None or result.facts.get("step") in (None, step)

    def title_of(self, result: Result) -> str:
        """The result's title, and in what it was measured otherwise than the run trained."""
        return ", ".join([result.title, *measured_otherwise(result.facts, self.config)])

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; UserError where they are not what was written."""
        return read_rows(self.folder / "metrics.jsonl", expected=self.manifest["result"].get("metrics_digest"))


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in nothing learned but the seed."""

    name: str
    runs: tuple[Run, ...]  # by seed

    @cached_property
    def recipe(self) -> Config | None:
        """That of the file of conf/ which makes the claim; None where one of these is no run of it on whole data."""
        found = [claiming_recipe_of_run(run.config, run.manifest["data"]) for run in self.runs]
        return None if None in found else found[0]

    @property
    def claim(self) -> dict[str, Any] | None:
        """The published result (percent) that these runs may stand beside."""
        return None if self.recipe is None or self.recipe.claim is None else dataclasses.asdict(self.recipe.claim)


@dataclass(frozen=True)
class Evaluation:
    """A result that belongs to no run folder: of weights from elsewhere, an ensemble, or other data than the run's."""

    result: Result
    folder: Path

    @property
    def name(self) -> str:
        """What was evaluated, of which network, on which data."""
        facts = self.result.facts
        return f"{facts['label']} ({facts['model']} on {facts['data']})"


@dataclass(frozen=True)
class Broken:
    """A run folder, or a result of no run, that cannot be read: marked in the report and left out of its numbers."""

    place: Path  # the folder, or the result's file
    error: UserError

    @property
    def name(self) -> str:
        return f"{self.place.parent.name}/{self.place.name}"

    @property
    def reason(self) -> str:
        """What is wrong, on one line, without the folder where these runs lie."""
        text = " ".join(str(self.error).split())
        return f"broken: {text.replace(f'{self.place}/', '').replace(f'{self.place}: ', '')}"

    def __str__(self) -> str:
        return str(self.error)


def input_folders(runs: Sequence[str]) -> list[Path]:
    """The folders to collect from: those named, else runs/ and evaluations/ as far as they are there."""
    usual = [path for path in (RUNS, EVALUATIONS) if path.is_dir()] or [RUNS]
    return [Path(path) for path in runs] or usual


def collect(paths: Iterable[Path], on_broken: Callable[[Broken], None] | None = None) -> list[Experiment]:
    """All runs in or below `paths`, grouped into experiments, sorted by name. A seed counts once: of a run and its
    reproduction, the first folder's name.

    Raises UserError for a path that is not there or holds neither runs nor results; and for a broken run, unless
    `on_broken` is there to be told of it: then the run is left out.
    """
    groups: dict[tuple[str, str], dict[Path, Run]] = {}
    for path in paths:
        for folder in _run_folders(path):
            try:
                run = read_run(folder)
                if on_broken is not None:
                    _ = run.metrics  # read now, so that only this run is left out where they are broken
            except UserError as error:
                if on_broken is None:
                    raise
                on_broken(Broken(folder, error))
                continue
            learning_hash = folder.name.rpartition("-")[2]
            groups.setdefault((run.manifest["name"], learning_hash), {})[folder] = run
    names = [name for name, _ in groups]
    return [
        Experiment(
            name=name if names.count(name) == 1 else f"{name} ({learning_hash})",
            runs=_one_a_seed(group.values()),
        )
        for (name, learning_hash), group in sorted(groups.items())
    ]


def collect_evaluations(paths: Iterable[Path], on_broken: Callable[[Broken], None] | None = None) -> list[Evaluation]:
    """All results in or below `paths` that lie in no run folder, by path; a broken one as in `collect`."""
    found = []
    for file in sorted({file for path in paths for file in _loose_results(path.resolve())}):
        try:
            found.append(Evaluation(_read_result(file), file.parent))
        except UserError as error:
            if on_broken is None:
                raise
            on_broken(Broken(file, error))
    return found


def _loose_results(path: Path) -> list[Path]:
    return [
        file for file in path.rglob("[!.]*.result.json") if not any(is_run_folder(parent) for parent in file.parents)
    ]


def _one_a_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.folder)):
        by_seed.setdefault(run.seed, run)
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def read_run(folder: Path) -> Run:
    """The run of a folder; UserError where config.yaml, manifest.json or a result is missing or broken."""
    config = read_config(folder)
    manifest = read_run_manifest(folder)
    results = [_read_result(path) for path in sorted((folder / "predictions").glob("[!.]*.result.json"))]
    for result in results:
        if result.facts.get("run_id") not in (None, manifest.get("run_id")):
            place = folder / "predictions" / f"{result_name(result.facts)}.result.json"
            raise UserError(f"{place}: is of another run's weights (run_id); remove it and run evaluate.py again")
    return Run(folder=folder, config=config, manifest=manifest, results=tuple(results))


def _run_folders(path: Path) -> list[Path]:
    """Run folders in or below `path`, resolved, also those that were copied in part; not those within a run folder
    (its own reproductions)."""
    if not path.is_dir():
        raise UserError(f"runs={path}: there is no such folder; train.py makes one below runs/")
    if is_run_folder(path) or _is_part_of_a_run(path):
        return [path.resolve()]
    found: list[Path] = []
    root, files = path.resolve(), ("config.yaml", "manifest.json")
    for folder in sorted({file.parent for name in files for file in root.rglob(name)}):
        if (is_run_folder(folder) or _is_part_of_a_run(folder)) and not any(
            parent in found for parent in folder.parents
        ):
            found.append(folder)
    if not found and not _loose_results(path.resolve()):
        raise UserError(
            f"runs={path}: holds no run folder (config.yaml and manifest.json; train.py makes them) and no result of"
            " evaluate.py"
        )
    return found


def _is_part_of_a_run(folder: Path) -> bool:
    """Whether a run's copy stopped halfway: it has trained, and one of the files that say how is missing."""
    found = [(folder / name).exists() for name in ("config.yaml", "manifest.json")]
    return any(found) and not all(found) and any((folder / "checkpoints").glob("*.ckpt"))


def _read_result(path: Path) -> Result:
    facts = load_result(path)
    try:
        return Result(
            protocol=facts["protocol"],
            label=protocol_label(facts),
            average=facts["averaging"],
            is_ema=facts["weights"] == "ema",
            is_best=facts["selection"] == "best",
            errors={k: float(facts[f"top{k}_error"]) for k in TOP},
            num_images=int(facts["num_images"]),
            weights_sha256=facts["weights_sha256"],
            source_fingerprint=facts["source_fingerprint"],
            scores=path.with_name(facts["scores"]),
            facts=facts,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a result of this version ({error!r}); evaluate again") from error

"""Finds run folders and results outside run folders, and reads what the report needs from them.

Reads neither data nor weights: a report can be written on a machine that has only the run folders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tencrop.config import UserError
from tencrop.config.run_config import is_run_folder, read_config
from tencrop.evaluation.results import by_classes, differences_from_training, load_result, protocol_label, result_name
from tencrop.evaluation.targets import EVALUATIONS
from tencrop.records.manifest import RunManifest
from tencrop.records.run_folder import read_run_manifest
from tencrop.report.claims import Claim, claims_of_runs
from tencrop.report.variant_names import variant_names
from tencrop.training.metric_rows import read_rows

TOP = (1, 5)
RUNS = Path("runs")  # where train.py writes by default


@dataclass(frozen=True)
class Result:
    """The errors of one set of weights under one protocol, as evaluate.py wrote them to *.result.json."""

    protocol: str
    label: str  # protocol, sizes and average in words
    average: str  # softmax | logits
    is_ema: bool  # measured with the exponential moving average of the weights
    is_best: bool  # measured with the checkpoint of lowest minival error rather than the last one
    errors: dict[int, float]  # k -> top-k error as a fraction
    num_images: int
    weights_sha256: str
    source_fingerprint: str
    scores: Path  # file with the class scores of every image
    facts: dict[str, Any]  # the whole content of result.json

    @property
    def title(self) -> str:
        """The label, with a mark unless the weights are the last epoch's own."""
        marks = [*(["EMA"] if self.is_ema else []), *(["best on minival"] if self.is_best else [])]
        return f"{self.label} ({', '.join(marks)})" if marks else self.label


@dataclass(frozen=True)
class Run:
    """The content of a run folder."""

    folder: Path
    config: dict[str, Any]
    manifest: RunManifest
    results: tuple[Result, ...]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def is_complete(self) -> bool:
        return self.manifest["result"]["status"] == "complete"

    @property
    def valid_results(self) -> list[Result]:
        """Results of the run's final weights and of its best checkpoint; results of replaced weights are left out."""
        # An unfinished run has no final weights. Its results are shown, and the table marks them.
        if not self.is_complete:
            return list(self.results)
        final = {self.manifest["result"][key] for key in ("weights_sha256", "ema_sha256")}
        return [
            result
            for result in self.results
            if (self._is_of_best(result) if result.is_best else result.weights_sha256 in final)
        ]

    def _is_of_best(self, result: Result) -> bool:
        """Whether the result's checkpoint is still the best one; True if metrics.jsonl has no minival errors."""
        rows = [row for row in self.metrics if row["split"] == "minival" and "top1_error" in row]
        # `min` returns the first of equal rows, and best.ckpt keeps the first of equally good checkpoints
        best = min(rows, key=lambda row: row["top1_error"], default={})
        step = best.get("step")
        return step is None or result.facts.get("step") in (None, step)

    def title_of(self, result: Result) -> str:
        """The result's title, followed by the settings that differ from those of training ("precision fp32")."""
        return ", ".join([result.title, *differences_from_training(result.facts, self.config)])

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; UserError if the file does not match the digest in the manifest."""
        # cached_property: the 22,500 rows of 90 epochs of ImageNet take 0.5 s to parse and check, and the charts read
        # them once per metric and split
        return read_rows(self.folder / "metrics.jsonl", expected=self.manifest["result"].get("metrics_digest"))


@dataclass(frozen=True)
class Experiment:
    """Runs whose settings that affect training differ only in the seed."""

    name: str
    runs: tuple[Run, ...]  # by seed

    @cached_property
    def claims(self) -> list[Claim]:
        """The rows of conf/errors that these runs may be compared with; empty unless all follow the row's recipe."""
        return claims_of_runs(self.runs)


@dataclass(frozen=True)
class Evaluation:
    """A result outside run folders: of downloaded weights, an ensemble, or other data than the run's."""

    result: Result
    folder: Path

    @property
    def name(self) -> str:
        """What was evaluated, the model and the data: "ensemble of 2 (resnet50 on imagenet)"."""
        facts = self.result.facts
        return f"{facts['label']} ({facts['model']} on {facts['data']})"


@dataclass(frozen=True)
class Broken:
    """A run folder or result that cannot be read. The report lists it and leaves it out of the numbers."""

    path: Path  # of the folder, or of the result's file
    error: UserError

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def reason(self) -> str:
        """What is wrong, on one line, without the folder that holds the run: a report may be passed on."""
        text = " ".join(str(self.error).split())
        return f"broken: {text.replace(f'{self.path}/', '').replace(f'{self.path}: ', '')}"

    def __str__(self) -> str:
        return str(self.error)


def input_folders(runs: Sequence[str]) -> list[Path]:
    """The folders to collect from: those in `runs`, or by default the existing ones of runs/ and evaluations/."""
    # runs/ stays in the list if neither exists, so that the error names the folder that is missing
    defaults = [path for path in (RUNS, EVALUATIONS) if path.is_dir()] or [RUNS]
    return [Path(path) for path in runs] or defaults


def collect(paths: Iterable[Path], on_broken: Callable[[Broken], None] | None = None) -> list[Experiment]:
    """All runs in or below `paths`, grouped into experiments and sorted by name.

    A seed counts once: of a run and its reproduction, the one whose folder comes first by name is taken. Raises
    UserError for a path that does not exist or holds neither runs nor results. A broken run is passed to `on_broken`
    and left out; without `on_broken` it raises UserError.
    """
    groups: dict[tuple[str, str], dict[Path, Run]] = {}
    for path in paths:
        for folder in _run_folders(path):
            try:
                run = read_run(folder)
                if on_broken is not None:
                    _ = run.metrics  # cached; a broken file found later, while drawing, would end the whole report
            except UserError as error:
                if on_broken is None:
                    raise
                on_broken(Broken(folder, error))
                continue
            # The hash in the folder's name, which train.py computed: under today's code an old config.yaml may hash
            # differently, and seeds of one experiment would be separated.
            learning_hash = folder.name.rpartition("-")[2]
            groups.setdefault((run.manifest["name"], learning_hash), {})[folder] = run
    configs: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, learning_hash), group in groups.items():
        configs.setdefault(name, {})[learning_hash] = next(iter(group.values())).config
    names = {name: variant_names(name, variants) for name, variants in configs.items()}
    return [
        Experiment(name=names[name][learning_hash], runs=_one_a_seed(group.values()))
        for (name, learning_hash), group in sorted(groups.items())
    ]


def collect_evaluations(paths: Iterable[Path], on_broken: Callable[[Broken], None] | None = None) -> list[Evaluation]:
    """All results in or below `paths` outside run folders, sorted by path; broken ones are treated as in `collect`."""
    found = []
    for file in sorted({file for path in paths for file in _loose_results(path.resolve())}):
        try:
            found.append(Evaluation(_read_result(file), file.parent))
        except UserError as error:
            if on_broken is None:
                raise
            on_broken(Broken(file, error))
    return found


def results_by_classes(result: Result) -> list[Result]:
    """The result once for each set of classes that its errors are counted among, as evaluation.results.by_classes."""
    return [_result(facts, result.scores) for facts in by_classes(result.facts)]


def _loose_results(path: Path) -> list[Path]:
    # [!.]: macOS writes ._NAME beside NAME on volumes without extended attributes
    return [
        file for file in path.rglob("[!.]*.result.json") if not any(is_run_folder(parent) for parent in file.parents)
    ]


def _one_a_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.folder)):
        by_seed.setdefault(run.seed, run)
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def read_run(folder: Path) -> Run:
    """The run in a folder; UserError if config.yaml, manifest.json or a result is missing or broken."""
    config = read_config(folder)
    manifest = read_run_manifest(folder)
    results = [_read_result(path) for path in sorted((folder / "predictions").glob("[!.]*.result.json"))]
    # The manifest has hashes of the final weights only. Without run_id, a result copied from another run would pass in
    # an unfinished run, or as one of best.ckpt. Results of earlier versions have no run_id (None).
    for result in results:
        if result.facts.get("run_id") not in (None, manifest.get("run_id")):
            path = folder / "predictions" / f"{result_name(result.facts)}.result.json"
            raise UserError(f"{path}: is of another run's weights (run_id); remove it and run evaluate.py again")
    return Run(folder=folder, config=config, manifest=manifest, results=tuple(results))


def _run_folders(path: Path) -> list[Path]:
    """Run folders in or below `path`, resolved, including incomplete copies.

    Run folders within a run folder are left out: they are its own reproductions.
    """
    if not path.is_dir():
        raise UserError(f"runs={path}: there is no such folder; train.py makes one below runs/")
    if is_run_folder(path) or _is_part_of_a_run(path):
        return [path.resolve()]
    found: list[Path] = []
    root, files = path.resolve(), ("config.yaml", "manifest.json")
    # sorted: a folder comes before those within it, so that `found` has every possible parent
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
    """Whether this is an incomplete copy of a run: it has a checkpoint but lacks config.yaml or manifest.json."""
    # The checkpoint decides: other programs write a config.yaml or a manifest.json too, and are not reported as broken.
    found = [(folder / name).exists() for name in ("config.yaml", "manifest.json")]
    return any(found) and not all(found) and any((folder / "checkpoints").glob("*.ckpt"))


def _read_result(path: Path) -> Result:
    facts = load_result(path)
    try:
        return _result(facts, path.with_name(facts["scores"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a result of this version ({error!r}); evaluate again") from error


def _result(facts: dict[str, Any], scores: Path) -> Result:
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
        scores=scores,
        facts=facts,
    )

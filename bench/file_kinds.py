"""The kinds of files that bench/damaged_files.py damages, each with the function by which a command reads it."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import ExportConfig
from tencrop.data.preparation.verify import verify
from tencrop.data.sources.kaggle import read_solution
from tencrop.data.store.manifest import open_split, read_manifest
from tencrop.evaluation.evaluate import evaluate_run
from tencrop.evaluation.predictions import Scores, load_scores, saved_scores
from tencrop.evaluation.results import load_result
from tencrop.export.export import export
from tencrop.export.source import export_source
from tencrop.models.weights import check_weights, load_weights
from tencrop.report.collect import read_run
from tencrop.report.label_sets import read_label_sets
from tencrop.submission.snapshot import write_snapshot
from tencrop.tables.reading import read_table
from tencrop.training.checkpoints import latest_valid_checkpoint, read_checkpoint

ROOT = Path(__file__).parents[1]
RECIPE = ("experiment=lenet5_digits", "training.max_steps=60", "checkpoint_every_steps=30", "tracker=none")


@dataclass(frozen=True)
class Kind:
    """A file, and how a command reads it: `read` returns what it uses of the file, or None if it computes it anew."""

    name: str
    path: Path
    read: Callable[[Path], Any]
    previous: Any = None  # what is read instead of a damaged file
    has_checksum: bool = True


def train_and_evaluate(folder: Path) -> Path:
    """The folder of a short run, below `folder`; its data are in folder/digits."""
    data = [f"data.root={folder}/digits"]
    commands = [
        ["prepare.py", "data=digits", *data],
        ["train.py", *RECIPE, *data, f"runs={folder}/runs", "hardware=cpu"],
    ]
    for script, *words in commands:
        subprocess.run([sys.executable, str(ROOT / script), *words], check=True, stdout=subprocess.DEVNULL)
    (manifest,) = (folder / "runs").rglob("manifest.json")
    return manifest.parent


def kinds(run: Path) -> list[Kind]:
    """Files of a complete run, of its data, and of what people bring."""
    folder = run.parents[2]
    return [*_of_training(run), *_of_evaluation(run), *_of_data(folder / "digits"), *_of_people(run, folder / "others")]


def _of_training(run: Path) -> list[Kind]:
    last = run / "checkpoints" / "last.ckpt"
    return [
        Kind("last.ckpt, resumed", last, _resumed, previous=read_checkpoint(last.with_name("previous.ckpt"))),
        Kind("last.ckpt, evaluated", last, functools.partial(_weights_for, load_weights(last).state)),
        Kind("config.yaml", run / "config.yaml", lambda path: config_of_run(path.parent, [], conf=CONF)),
        Kind("manifest.json of a run", run / "manifest.json", lambda path: read_run(path.parent).manifest),
        Kind("metrics.jsonl", run / "metrics.jsonl", lambda path: read_run(path.parent).metrics),
    ]


def _resumed(last: Path) -> dict[str, Any]:
    found = latest_valid_checkpoint(last.parents[1])
    assert found is not None
    return found.content


def _weights_for(network: dict[str, torch.Tensor], path: Path) -> tuple[Any, ...]:
    """The weights as evaluate.py reads them, which takes those of its network only."""
    weights = load_weights(path)
    check_weights(weights.state, network, source=str(path), name="lenet5")
    return tuple(weights)


def _of_evaluation(run: Path) -> list[Kind]:
    scores = run / "predictions" / "center.safetensors"
    written = load_scores(scores)

    def evaluated(path: Path) -> Scores | None:
        return saved_scores(path, written.metadata, labels=written.labels.numpy())

    return [
        Kind("scores, evaluated", scores, evaluated),
        Kind("scores, reported", scores, load_scores),
        Kind("result.json", scores.with_name("center.result.json"), load_result),
        Kind("val.beton, evaluated", _data_of(run) / "val.beton", functools.partial(_scores_of_data, run)),
    ]


def _data_of(run: Path) -> Path:
    return run.parents[2] / "digits"


def _scores_of_data(run: Path, path: Path) -> Scores:
    """The scores that evaluate.py computes from the images."""
    config, out = config_of_run(run, [], conf=CONF), run.parents[2] / "evaluated"
    shutil.rmtree(out, ignore_errors=True)
    checkpoint = run / "checkpoints" / "last.ckpt"
    evaluate_run(config, manifest=read_manifest(path.parent), checkpoint=checkpoint, out=out)
    return load_scores(out / "center.safetensors")


def _of_data(root: Path) -> list[Kind]:
    def verified(path: Path) -> bytes:
        verify(path.parent, progress=False)
        return path.read_bytes()

    def mean_image(path: Path) -> Any:
        return open_split(path.parent, "train").statistics["mean_image"]

    return [
        Kind("manifest.json of data", root / "manifest.json", lambda path: read_manifest(path.parent)),
        Kind("mean_image.npy", root / "mean_image.npy", mean_image),
        *(Kind(f"{name}, verified", root / name, verified) for name in ("train.beton", "train.files.npy")),
    ]


def _of_people(run: Path, folder: Path) -> list[Kind]:
    """Files that others write, or that have no other copy: weights, labels, conf/, and a snapshot of the code."""
    conf, snapshot, last = folder / "conf", folder / "code-0123456789ab", run / "checkpoints" / "last.ckpt"
    shutil.copytree(CONF, conf)
    exported = export(export_source(ExportConfig(str(last), "safetensors", None, str(folder / "export")))).files
    weights = load_weights(last).state
    weights_for = functools.partial(_weights_for, weights)
    torch.save(weights, folder / "weights.pth")
    save_file(weights, folder / "weights.safetensors")
    (folder / "real.json").write_text(json.dumps([[number % 1000] for number in range(50_000)]))
    solution = [f"ILSVRC2012_val_{number:08d},n{number % 1000:08d} 1 2 3 4" for number in range(1, 50_001)]
    (folder / "solution.csv").write_text("\n".join(["ImageId,PredictionString", *solution]) + "\n")
    files = {"src/module.py": b"NUM_CLASSES = 1000\n" * 20, "conf/train.yaml": (CONF / "train.yaml").read_bytes()}
    write_snapshot(snapshot, files)

    def submitted(path: Path) -> bytes:
        write_snapshot(snapshot, files)
        return path.read_bytes()

    def composed(path: Path) -> Any:
        return compose_training([f"experiment={path.stem}"], conf)

    by_hand: dict[str, Any] = {"has_checksum": False}
    return [
        Kind("weights.pth", folder / "weights.pth", weights_for),
        Kind(
            "weights.safetensors, exported",
            next(path for path in exported if path.suffix == ".safetensors"),
            weights_for,
        ),
        Kind("weights.safetensors", folder / "weights.safetensors", weights_for, **by_hand),
        Kind("real.json", folder / "real.json", read_label_sets, **by_hand),
        Kind(
            "LOC_val_solution.csv",
            folder / "solution.csv",
            lambda path: read_solution(path.read_bytes(), str(path)),
            **by_hand,
        ),
        Kind(
            "conf/errors",
            conf / "errors" / "alexnet_table1.yaml",
            lambda path: read_table(path.stem, path.parent),
            **by_hand,
        ),
        Kind("conf/experiment", conf / "experiment" / "lenet5_digits.yaml", composed, **by_hand),
        Kind("snapshot of the code", snapshot / "conf" / "train.yaml", submitted),
    ]

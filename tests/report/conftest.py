"""Synthetic run folders: real digits, invented metrics, and scores with a chosen error rate."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tencrop.config import Config
from tencrop.data.store.manifest import open_split, read_manifest
from tencrop.evaluation.predictions import from_averages, save_scores
from tencrop.evaluation.results import load_result, result_of, save_result
from tencrop.records.run_folder import finish, read_run_manifest, run_folder
from tencrop.report import claims
from tencrop.training.checkpoints import AtomicCheckpointIO

EPOCHS, STEPS_PER_EPOCH = 6, 40


def make_run(config: Config, *, is_complete: bool = True) -> Path:
    """A run folder with metrics and a checkpoint."""
    folder = run_folder(config, read_manifest(config.data.root))
    rows = [row for epoch in range(EPOCHS) for row in metrics_of(epoch, config.seed)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = torch.Generator().manual_seed(config.seed)
    state = {
        "model.conv1.weight": torch.randn(6, 1, 5, 5, generator=generator),
        "model.output.weight": torch.randn(10, 84, generator=generator),
    }
    facts = {"step": 1, "total_steps": 1, "seed": config.seed, "model": config.model.name}
    facts["run_id"] = read_run_manifest(folder)["run_id"]
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "tencrop": facts}, folder / "checkpoints" / "last.ckpt")
    status = "complete" if is_complete else "interrupted"
    finish(folder, status=status, weights_sha256=weights_of(config))
    return folder


def metrics_of(epoch: int, seed: int) -> list[dict]:
    """Rows of an epoch: training every 10 steps, then validation."""
    rows = []
    for part in range(1, 5):
        at = epoch + part / 4
        facts = {"loss": 2.3 * math.exp(-at) + 0.02 * seed, "top1_error": 0.9 * math.exp(-at), "top5_error": 0.1}
        rate = {"lr": 0.1 * 0.1 ** (epoch // 2), "images_per_s": 1000.0, "num_images": 320}
        rows.append({"step": epoch * STEPS_PER_EPOCH + 10 * part, "epoch": at, "split": "train", **facts, **rate})
    facts = {"loss": 1.8 * math.exp(-epoch) + 0.1, "top1_error": 0.5 * math.exp(-epoch) + 0.02, "top5_error": 0.01}
    return [
        *rows,
        {"step": (epoch + 1) * STEPS_PER_EPOCH, "epoch": epoch + 1.0, "split": "val", **facts, "num_images": 500},
    ]


def weights_of(config: Config) -> str:
    """The invented hash of a run's weights."""
    return f"{config.seed:064x}"


def make_result(config: Config, folder: Path, *, num_wrong: int, weights_sha256: str | None = None) -> None:
    """Scores and result.json under the configuration's protocol: `num_wrong` images wrong, all in the top 5."""
    split = open_split(config.data.root, "val", data=config.data.name)
    labels = torch.tensor(split.labels).long()
    num_images, num_classes = len(labels), len(split.manifest["classes"])
    generator = torch.Generator().manual_seed(config.seed)
    logits = torch.randn(num_images, num_classes, generator=generator)
    rows = torch.arange(num_images)
    logits[rows, labels] = 6.0
    logits[rows[:num_wrong], (labels[:num_wrong] + 1) % num_classes] = 6.5
    identity = {
        "model": config.model.name,
        "model_kwargs": json.dumps(config.model.kwargs),
        "data": config.data.name,
        "weights": "raw",
        "weights_sha256": weights_sha256 or weights_of(config),
        "source_fingerprint": split.source_fingerprint,
    }
    scores = from_averages(rows, labels, logits.softmax(1), logits, identity)
    stem = config.protocol.name
    save_scores(folder / "predictions" / f"{stem}.safetensors", scores)
    result = result_of(
        scores, config, selection="last", step=1, total_steps=1, checkpoint="last.ckpt", scores=f"{stem}.safetensors"
    )
    save_result(folder / "predictions" / f"{stem}.result.json", result)


@pytest.fixture
def print_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """print_table(top1="1.5", protocol={"name": "five_crop"}): conf/errors is one table, of lenet5_digits by a central
    crop; a key in capital letters changes the table, another one its only row."""

    def write(**changes: Any) -> None:
        of_table = {key.lower(): value for key, value in changes.items() if key.isupper()}
        of_row = {key: value for key, value in changes.items() if not key.isupper()}
        protocol = {"name": "center", "side": 36, "size": 32, "region": "whole", "resize": "shorter_side"}
        row = {"id": "a", "row": "A", "top1": "1.5", "top5": None, "experiment": "lenet5_digits"} | of_row
        table: dict[str, object] = {"title": "Table 1", "source": "A & B", "data": "digits", "split": "val"}
        table |= {"unit": "error", "columns": ["top1", "top5"], "confidence": "third party"} | of_table
        table |= {"protocol": protocol | {"filter": None, "average": None}, "rows": [row]}
        folder = tmp_path / f"errors{len(list(tmp_path.glob('errors*')))}"
        folder.mkdir()
        (folder / "printed.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
        monkeypatch.setattr(claims, "ERRORS", folder)

    return write


@pytest.fixture
def digits_config(composed: Callable[..., Config], prepared_digits: Path, tmp_path: Path) -> Callable[..., Config]:
    """digits_config("seed=1", ...): LeNet-5 on the prepared digits, with runs in a temporary folder."""

    def build(*overrides: str) -> Config:
        location = [f"runs={tmp_path}/runs", f"data.root={prepared_digits}", "tracker=none"]
        return composed("experiment=lenet5_digits", *location, *overrides)

    return build


@pytest.fixture
def evaluated_run(digits_config: Callable[..., Config]) -> Callable[..., Path]:
    """evaluated_run("seed=1", num_wrong=8): a complete run, evaluated under the configured protocol."""

    def build(*overrides: str, num_wrong: int = 8) -> Path:
        config = digits_config(*overrides)
        folder = make_run(config)
        make_result(config, folder, num_wrong=num_wrong)
        return folder

    return build


@pytest.fixture
def loose_result(tmp_path: Path) -> Callable[..., Path]:
    """loose_result(run_folder, label="ensemble of 2"): a copy of the run's result in evaluations/loose with changes."""

    def build(folder: Path, **changes: Any) -> Path:
        out = tmp_path / "evaluations" / "loose"
        facts = load_result(folder / "predictions" / "center.result.json")
        save_result(out / "center.result.json", facts | {"checkpoint": ["a.ckpt", "b.ckpt"]} | changes)
        return out

    return build


@pytest.fixture
def run_maker() -> Callable[..., Path]:
    """run_maker(config, is_complete=False): a run folder without results."""
    return make_run

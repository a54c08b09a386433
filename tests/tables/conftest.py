"""Fixtures: tables written for a test, and complete runs of LeNet-5 on the digits with scores of a chosen error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencrop.config import Config
from tencrop.data.store.manifest import open_split, read_manifest
from tencrop.evaluation.predictions import from_averages, protocol_text, save_scores
from tencrop.evaluation.results import result_of, save_result
from tencrop.records.run_folder import finish, run_folder

PROTOCOL = {"name": "center", "side": 36, "size": 32, "region": "whole", "resize": "shorter_side",
            "filter": "bilinear", "average": None}  # fmt: skip
DIGITS: dict[str, Any] = {
    "title": "LeNet-5, table 1",
    "source": "Someone 1998",
    "data": "digits",
    "split": "val",
    "unit": "error",
    "columns": ["top1", "top5"],
    "confidence": "one transcription",
    "protocol": PROTOCOL,
    "rows": [{"id": "lenet5", "row": "LeNet-5", "top1": "2.0", "top5": "0.0", "experiment": "lenet5_digits"}],
}


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """write_table("name", unit="accuracy"): the digits' table with these keys changed; the folder that it lies in."""

    def write(name: str = "digits", /, **changes: Any) -> Path:
        folder = tmp_path / "conf" / "errors"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(json.dumps(DIGITS | changes))  # JSON is YAML
        return folder

    return write


@pytest.fixture
def write_row(write_table: Callable[..., Path]) -> Callable[..., Path]:
    """write_row(top1="2.6"): the digits' table, its row so changed; a key that is None is left out."""

    def write(**changes: Any) -> Path:
        return write_table(rows=[DIGITS["rows"][0] | changes])

    return write


@pytest.fixture
def finished_run(composed: Callable[..., Config], prepared_digits: Path, tmp_path: Path) -> Callable[..., Path]:
    """finished_run("seed=1", num_wrong=10): a complete run of lenet5_digits, so many of 500 images wrong; num_wrong
    None: not evaluated."""

    def build(*overrides: str, num_wrong: int | None = 10, status: str = "complete") -> Path:
        place = [f"runs={tmp_path}/runs", f"data.root={prepared_digits}", "tracker=none"]
        config = composed("experiment=lenet5_digits", *place, *overrides)
        folder = run_folder(config, read_manifest(config.data.root))
        finish(folder, status=status, weights_sha256=f"{config.seed:064x}")
        if num_wrong is not None:
            evaluate(config, folder, num_wrong)
        return folder

    return build


def evaluate(config: Config, folder: Path, num_wrong: int) -> None:
    """Scores and result.json as evaluate.py writes them."""
    split = open_split(config.data.root, "val", data=config.data.name)
    labels = torch.tensor(split.labels).long()
    logits = 6.0 * torch.nn.functional.one_hot(labels, 10)
    logits[torch.arange(num_wrong), (labels[:num_wrong] + 1) % 10] = 7.0
    identity = {
        "model": config.model.name,
        "data": config.data.name,
        "weights": "raw",
        "weights_sha256": f"{config.seed:064x}",
        "source_fingerprint": split.source_fingerprint,
        "protocol": protocol_text(config.protocol),
        "normalization": json.dumps({"mean": [20.0] * 3, "std": [200.0] * 3}),
    }
    scores = from_averages(torch.arange(len(labels)), labels, logits.softmax(1), logits, identity)
    out, stem = folder / "predictions", config.protocol.name
    save_scores(out / f"{stem}.safetensors", scores)
    last = {"selection": "last", "step": 1, "total_steps": 1, "seed": config.seed}
    result = result_of(scores, config, checkpoint="last.ckpt", scores=f"{stem}.safetensors", **last)
    save_result(out / f"{stem}.result.json", result)

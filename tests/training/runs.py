"""Train a tiny network in a separate process, with an injected fault if wanted; used by the tests of training."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback

import tencrop.training.checkpoints
import tencrop.training.classifier
from tencrop.cli.choices import CONF
from tencrop.config import Config, derive_batches, validate
from tencrop.data.store.manifest import read_manifest
from tencrop.training.divergence import record_nonfinite_loss
from tencrop.training.fit import build, completed_fit, fit
from tencrop.training.initial_weights import read_initial_weights

# 18 images to train on and 6 to select by, 3 steps an epoch of 3 micro-batches each; every part that has a state
RECIPE = [
    "data=imagefolder", "model=timm", "model.name=test_efficientnet", "+model.kwargs.drop_rate=0.2",
    "model.bn_group=2", "image_size=32", "short_side=32", "augmentation=random_resized_crop",
    "schedule=plateau", "schedule.patience=1", "optimizer.lr=0.01", "training.minival_fraction=0.25",
    "training.global_batch=6", "training.epochs=4", "training.precision=fp32", "training.ema_decay=0.9",
    "training.label_smoothing=0.1", "training.clip_grad_norm=1.0", "log_every_steps=2", "tracker=none",
    "hardware=cpu", "hardware.max_micro_batch=2", "hardware.workers=1",
]  # fmt: skip


def recipe(root: Path, *overrides: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(compose("train", [*RECIPE, f"data.root={root}", *overrides]), Config)


class Fault(Callback):
    """Sends `signal_number` to its own process at a chosen moment.

    The moments are after optimizer step `at_step`, in a validation batch, and during the write of a checkpoint, with
    half of it on disk or before the rename. occurrence: the first, second... such moment; rank: on which rank."""

    def __init__(
        self,
        signal_number: int,
        *,
        at_step: int | None = None,
        place: str = "step",
        occurrence: int = 1,
        rank: str | None = None,
    ):
        if rank not in (None, os.environ.get("LOCAL_RANK")):
            place = "nowhere"
        self.signal_number, self.at_step, self.place, self.countdown = signal_number, at_step, place, occurrence
        if place in ("write", "rename"):
            replace = os.replace

            def fail(source: Path, target: Path) -> None:
                if Path(target).suffix == ".ckpt" and self._is_due():
                    if place == "write":
                        os.truncate(source, Path(source).stat().st_size // 2)
                    os.kill(os.getpid(), signal_number)
                replace(source, target)

            os.replace = fail  # type: ignore[assignment]

    def _is_due(self) -> bool:
        self.countdown -= 1
        return self.countdown == 0

    def on_train_batch_end(self, trainer: Any, classifier: Any, *_: Any) -> None:
        if self.place == "step" and classifier.is_at_step_boundary and classifier.global_step == self.at_step:
            os.kill(os.getpid(), self.signal_number)

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.place == "validation" and self._is_due():
            os.kill(os.getpid(), self.signal_number)


def poison(at_step: int) -> None:
    """Make the loss of optimizer step `at_step` NaN."""

    def record(first_nonfinite_step: torch.Tensor, loss: torch.Tensor, *, step: int) -> None:
        record_nonfinite_loss(first_nonfinite_step, loss * float("nan") if step == at_step else loss, step=step)

    tencrop.training.classifier.record_nonfinite_loss = record


def train(
    root: Path,
    run_dir: Path,
    overrides: tuple[str, ...] = (),
    *,
    fault: dict[str, Any] | None = None,
    nan_at_step: int | None = None,
    float64: bool = False,
    traced: bool = False,
    environment: dict[str, str] | None = None,
) -> None:
    """Train as train.py does, and write the outcome to run_dir/result<rank>.json.

    traced: torch.compile traces the network, and generates no code, which takes a minute."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if traced:
        torch.compile = partial(torch.compile, backend="aot_eager")
    if float64:
        torch.set_default_dtype(torch.float64)
    if nan_at_step is not None:
        poison(nan_at_step)
    config = recipe(root, *overrides)
    callbacks = [] if fault is None else [Fault(**fault)]
    run_dir.mkdir(parents=True, exist_ok=True)
    result = completed_fit(run_dir)
    if result is None:
        initial = read_initial_weights(config.training.init, run_dir)
        built = build(config, batches=derive_batches(config), manifest=read_manifest(root), initial=initial)
        result = fit(*built, run_dir=run_dir, callbacks=callbacks)
    rank = os.environ.get("LOCAL_RANK", "0")
    outcome = {**vars(result), "checkpoint": str(result.checkpoint)}
    outcome["num_graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] if traced else 0
    (run_dir / f"result{rank}.json").write_text(json.dumps(outcome))
    sys.exit(result.exit_code)

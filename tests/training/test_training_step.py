"""The files that the default training step runs through are those that docs/layout.md lists."""

import re
import sys
from pathlib import Path
from types import FrameType, SimpleNamespace

import torch
from pytorch_lightning import Trainer

import tencrop
from tencrop.config import derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.training.data_module import DataModule
from tencrop.training.fit import build
from typed import stand_in

PACKAGE = Path(tencrop.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
MAX_FILES = 5


def listed_files() -> set[str]:
    section = (ROOT / "docs" / "layout.md").read_text().partition("## The default training step")[2]
    return set(re.findall(r"^\d\. `([a-z_/]+\.py)`", section.partition("\n## ")[0], re.MULTILINE))


def test_the_default_step_runs_through_the_listed_files(composed, prepared_photos, monkeypatch):
    """ResNet-18, which has the layers of ResNet-50 in smaller numbers, from the batch to optimizer.step."""
    config = composed(
        "model=resnet18", "data=imagefolder", f"data.root={prepared_photos}", "image_size=32", "short_side=32",
        "training.global_batch=8", "model.bn_group=4", "hardware=cpu", "hardware.workers=1",
    )  # fmt: skip
    assert config.model.kwargs == composed("model=resnet50").model.kwargs
    data, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = stand_in(Trainer, global_rank=0, world_size=1, global_step=0, current_epoch=0, strategy=strategy)
    data.trainer = classifier.trainer = trainer
    optimizer = classifier.configure_optimizers()
    monkeypatch.setattr(classifier, "optimizers", lambda: optimizer)
    monkeypatch.setattr(classifier, "manual_backward", lambda loss: loss.backward())
    batch = next(iter(data.train_dataloader()))
    files = set()

    def record(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE).as_posix())

    step = optimizer.step

    def last_step() -> None:
        sys.setprofile(None)
        step()

    monkeypatch.setattr(optimizer, "step", last_step)
    assert isinstance(data, DataModule)
    sys.setprofile(record)
    try:
        classifier.training_step(batch, 0)
    finally:
        sys.setprofile(None)
        data.close()
    assert files == listed_files() and len(files) <= MAX_FILES

"""Checkpoints as timm, torchvision's references and others write them: the weights are read, and nothing is built."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel

from tencrop.config import UserError
from tencrop.models.weights import IgnoredObject, _read_torch, apply_weights, load_weights

ARGS = argparse.Namespace(model="resnet18", lr=0.1, output_dir=PosixPath("/tmp"), mean=(0.5,), weights=None)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet18", num_classes=3)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return network(0)


@pytest.fixture(scope="module")
def averaged() -> nn.Module:
    return network(1)


def of_timm(path: Path, trained: nn.Module, averaged: nn.Module) -> None:
    """By timm's own saver, as its train.py calls it."""
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    ema = ModelEmaV3(averaged)
    folder = str(path.parent)
    saver = CheckpointSaver(trained, optimizer, ARGS, ema, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(0, metric=np.float64(12.5))
    (path.parent / "model_best.pth.tar").rename(path)


def of_torchvision(path: Path, trained: nn.Module, averaged: nn.Module) -> None:
    """As references/classification/train.py writes it, with --model-ema and a warm-up."""
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    schedules = [LinearLR(optimizer), CosineAnnealingLR(optimizer, 10)]
    checkpoint = {
        "model": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": SequentialLR(optimizer, schedules, milestones=[5]).state_dict(),
        "epoch": 3,
        "args": ARGS,
        "model_ema": AveragedModel(averaged, use_buffers=True).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(checkpoint, path)


def of_pytorch_examples(path: Path, trained: nn.Module, _: nn.Module) -> None:
    """With what people add: numpy's numbers and arrays; under nn.DataParallel."""
    metrics = {"best": np.float32(55.1), "all": np.arange(3.0), "is_best": np.bool_(True), "at": np.int64(3)}
    state = {f"module.{key}": tensor for key, tensor in trained.state_dict().items()}
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": state, "best_acc1": metrics}, path)


def of_lightning(path: Path, trained: nn.Module, _: nn.Module) -> None:
    """Of a module that calls its network `net`."""
    state = {f"net.{key}": tensor for key, tensor in trained.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"args": ARGS}, "global_step": 3}, path)


Save = Callable[[Path, nn.Module, nn.Module], None]
PROGRAMS: dict[Save, bool] = {
    of_timm: True,
    of_torchvision: True,
    of_pytorch_examples: False,
    of_lightning: False,
}  # averages, too


@pytest.mark.parametrize("save", PROGRAMS)
def test_the_weights_of_a_foreign_checkpoint_are_read(
    save: Save, trained: nn.Module, averaged: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "foreign.pth"
    save(path, trained, averaged)
    with pytest.raises(pickle.UnpicklingError):  # which is why it is not enough
        torch.load(path, weights_only=True)
    for ema, expected in ((False, trained), (True, averaged)) if PROGRAMS[save] else ((None, trained),):
        found, own = load_weights(path, ema=ema), network(2)
        apply_weights(own, found.state, source="it", name="resnet18")
        assert found.kind == ("ema" if ema else "raw")
        assert all(torch.equal(tensor, own.state_dict()[key]) for key, tensor in expected.state_dict().items())
    for known in torch.serialization.get_safe_globals():  # for other readers, ours among them, nothing has changed
        assert not isinstance(known, tuple) or known[0] is not IgnoredObject


class Recorder:
    """An object that leaves a trace if it is built or called."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_objects_beside_the_weights_are_never_built(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.zeros(1)}, "args": ARGS, "best": np.float64(1), "all": np.ones(2)}, path)
    content = _read_torch(path)
    assert {type(content[key]) for key in ("args", "best", "all")} == {IgnoredObject}
    assert all(not vars(content[key]) for key in ("args", "best", "all"))


@pytest.mark.parametrize("place", ["in the arguments", "as arguments", "in an array"])
def test_a_placeholder_executes_nothing(place: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "a.pth"
    bad: Any = Recorder(trace)
    if place == "in the arguments":
        bad = argparse.Namespace(lr=bad)
    elif place == "in an array":
        bad = np.array([bad], dtype=object)
    torch.save({"model": {"w": torch.zeros(1)}, "args": bad}, path)
    with pytest.raises(UserError, match=r"it holds (posix|nt)\.system, which could run code"):
        load_weights(path)
    assert not trace.exists()


def test_an_object_instead_of_the_weights_is_not_a_state_dict(tmp_path: Path) -> None:
    torch.save({"model": ARGS, "epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="no state dict was found"):
        load_weights(tmp_path / "a.pth")
    torch.save(ARGS, tmp_path / "b.pth")
    with pytest.raises(UserError, match="no state dict was found"):
        load_weights(tmp_path / "b.pth")

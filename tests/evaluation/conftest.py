"""Fixtures of the evaluation tests: 501 small images, networks with random weights, and their checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tencrop.config import Config
from tencrop.data.augmentation.color import mean_and_std
from tencrop.data.preparation.prepare import prepare
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation.evaluate import evaluate_run
from tencrop.evaluation.inference import ScoringTask
from tencrop.models.checkpoint_files import run_manifest, weights_sha256
from tencrop.models.factory import build_model
from tencrop.training.checkpoints import AtomicCheckpointIO

NUM_IMAGES, NUM_CLASSES = 501, 6
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 61.0, 62.0]


@pytest.fixture(scope="session")
def prepared_501(photographs, data_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """501 evaluation images in 6 classes (PNG crops of photographs, sides of 36 to 44 pixels) and 6 to train on."""
    source = tmp_path_factory.mktemp("images")
    for split, num_images in (("train", NUM_CLASSES), ("val", NUM_IMAGES)):
        for number in range(num_images):
            height, width = 36 + number % 9, 36 + number // 9 % 9
            left, top = number * 37 % 590, number * 23 % 380
            crop = photographs[("china", "flower")[number % 2]].crop((left, top, left + width, top + height))
            folder = source / split / f"class{number % NUM_CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            crop.save(folder / f"{number:03d}.png", compress_level=1)
    return prepare(data_config(source, tmp_path_factory.mktemp("prepared_501")), workers=2, progress=False)


@pytest.fixture
def make_config(composed: Callable[..., Config], prepared_501: Path, tmp_path: Path) -> Callable[..., Config]:
    """make_config("protocol=ten_crop", ...): a small network on the 501 images, on the CPU."""
    return partial(
        composed, "data=imagefolder", f"data.root={prepared_501}", "model=lenet5_dense", "image_size=32",
        "short_side=36", "training.precision=fp32", "hardware=cpu", "hardware.workers=1", f"runs={tmp_path}/runs",
    )  # fmt: skip


@pytest.fixture
def new_network() -> Callable[..., nn.Module]:
    """new_network(config, seed=0): the configuration's network with random weights."""

    def build(config: Config, *, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return build_model(config.model, num_classes=NUM_CLASSES)

    return build


@pytest.fixture
def save_checkpoint() -> Callable[..., Path]:
    """save_checkpoint(path, config, network, ema=None): write a checkpoint of these weights, as training does."""

    def save(path: Path, config: Config, network: nn.Module, ema: nn.Module | None = None) -> Path:
        networks = {"model": network} | ({} if ema is None else {"ema": ema})
        state = {f"{kind}.{name}": value for kind, net in networks.items() for name, value in net.state_dict().items()}
        mean, std = mean_and_std(config.normalization, {"mean": [1.0, 2.0, 3.0], "std": [50.0, 51.0, 52.0]})
        facts: dict[str, Any] = {"seed": config.seed, "step": 7, "total_steps": 7, "mean": mean, "std": std}
        facts |= {"model": config.model.name, "run_id": run_manifest(path.parent.parent).get("run_id")}
        checkpoint = {"state_dict": {**state, "train_counts": torch.zeros(4)}, "tencrop": facts}
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        return path

    return save


@pytest.fixture
def make_task(save_checkpoint: Callable[..., Path], new_network: Callable[..., nn.Module], tmp_path: Path):
    """make_task(config) -> the task and its network, with the weights on disk."""

    def make(config: Config) -> tuple[ScoringTask, nn.Module]:
        network = new_network(config)
        path = save_checkpoint(tmp_path / "last.ckpt", config, network)
        identity = {"weights_sha256": weights_sha256(network.state_dict()), "protocol": config.protocol.name}
        return ScoringTask(config, path, "raw", 6, MEAN, STD, identity), network

    return make


@pytest.fixture
def evaluate() -> Callable[..., dict[str, Any]]:
    """evaluate(config, checkpoint, out): the result of evaluate_run in this process."""

    def run(config: Config, checkpoint: Path, out: Path) -> dict[str, Any]:
        result = evaluate_run(config, manifest=read_manifest(config.data.root), checkpoint=checkpoint, out=out)
        assert result is not None
        return result

    return run

"""Every experiment composes, builds its network at its own size, trains, resumes and evaluates; so does the default.

tests/tables/test_paper_tables.py composes the rows of conf/errors that name them.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from small_recipes import small_recipe
from tencrop.cli.choices import CONF
from tencrop.cli.recipes import recipe_models
from tencrop.config import derive_batches
from tencrop.data.preparation.prepare import prepare
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation.evaluate import evaluate_run
from tencrop.models.factory import build_model
from tencrop.training.fit import build, fit
from tencrop.training.metric_rows import read_rows
from training.runs import Fault

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "auto")
RECIPES = [*(f"experiment={name}" for name in EXPERIMENTS), "model=resnet50"]
DIGITS = ("digits", "mnist")  # by data.name: LeNet-5 has codes for ten classes; the other recipes train on photographs


@pytest.fixture(scope="module")
def few_photos(photo_folder: Path, data_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with four images to train on and one to test, prepared: three steps an epoch, one batch of test."""
    source = tmp_path_factory.mktemp("few_photos")
    for split, num_images in (("train", 4), ("val", 1)):
        for folder in (photo_folder / split).iterdir():
            (source / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:num_images]:
                (source / split / folder.name / file.name).symlink_to(file)
    return prepare(data_config(source, tmp_path_factory.mktemp("prepared_few_photos")), workers=2, progress=False)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_network_takes_images_of_its_own_size(recipe, composed):
    config = composed(recipe)
    with torch.device("meta"):  # shapes without numbers: VGG D has 138 million parameters
        network = build_model(config.model, num_classes=config.data.num_classes or 1000, image_size=config.image_size)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_resumes_and_evaluates(recipe, composed, few_photos, request, tmp_path):
    """Two steps in one go, and with an interruption between them: the same bits. Then the recipe's own protocol."""
    on_digits = composed(recipe).data.name in DIGITS
    root = request.getfixturevalue("prepared_digits") if on_digits else few_photos
    batch = 2 if "inception_v3" in recipe else 4  # two of its images of 299 x 299 take as long as most other recipes
    words = [*small_recipe(composed, recipe, batch=batch), f"data.root={root}"]
    config = composed(*words, "training.max_steps=2", "log_every_steps=1")
    manifest = read_manifest(root)

    def run(folder: str, *, stop_at: int | None = None):
        (tmp_path / folder).mkdir(exist_ok=True)
        built = build(config, batches=derive_batches(config), manifest=manifest)
        stop = [] if stop_at is None else [Fault(signal.SIGTERM, at_step=stop_at)]
        return fit(*built, run_dir=tmp_path / folder, callbacks=stop)

    whole, stopped = run("whole"), run("parts", stop_at=1)
    assert (whole.status, whole.step, stopped.status, stopped.step) == ("complete", 2, "interrupted", 1)
    assert stopped.weights_sha256 != whole.weights_sha256, "the second step changes the weights"
    resumed = run("parts")
    assert (resumed.weights_sha256, resumed.ema_sha256) == (whole.weights_sha256, whole.ema_sha256)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    result = evaluate_run(config, manifest=manifest, checkpoint=whole.checkpoint, out=tmp_path / "scores")
    assert result is not None
    assert (result["num_images"], result["protocol"]) == (500 if on_digits else 3, config.protocol.name)


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, with losses, learning rates and data digests, without images_per_s."""
    rows = read_rows(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_header_tells_the_command(name):
    path = CONF / "experiment" / f"{name}.yaml"
    models = recipe_models(path)
    if models:  # the run is called after the model, as with model=MODEL
        assert any(f"python train.py experiment={model} " in path.read_text() for model in models)
    else:
        assert f"python train.py experiment={name}" in path.read_text() and f"name: {name}" in path.read_text()

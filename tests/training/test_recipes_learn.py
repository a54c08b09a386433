"""Recipes learn: at reduced width and resolution, its own optimizer, schedule, augmentation and loss bring a recipe's
error on the training images of a small problem from chance, 90%, to at most 60%.

The problem is 500 handwritten digits, which the recipes read as photographs: mirrored, cropped to 8%, and so on. The
error is that of the recipe's validation, without augmentation, every 20 passes; a recipe that is at the bound stops.
The budget follows from the recipe alone, and was written before the first run: 20 passes of 15 steps with 32 images,
times

- E, its epochs over 90, if more: a longer schedule warms up and decays more slowly, and allows more augmentation;
- M, 2 if it mixes images: half of each target belongs to another image;
- B, its batch over 32, for SGD without normalization layers: `small_recipe` divides lr by B, so that 300 steps of the
  recipe's own lr take as many more.

A recipe that missed the bound gets one more try, with three times its passes. The factor was written before the first
of these runs.

short_recipes.py says what else a short run changes.

AlexNet trains by its own recipe: its network at full width, its batch of 128, its lr, its standard deviation of 0.01
and its biases of 1. Only its images are smaller, 96 pixels, and lr is constant. It is alive if at most 300 steps bring
the error to 75%; it is measured every 30 steps. Measured: 75.2% after 90 steps, 64.4% after 120 (3 minutes of a core);
at a quarter of the width, with a standard deviation of 0.02, 62.2% after 150.

A recipe for fine-tuning starts from the weights that the recipe before it learned here. Its error is at most 60% if its
last layer is new, else at most 2 points above that of these weights: its lr, up to 200 times lower, would teach random
weights nothing. Measured: swin_384 25.8% (before: 38.6%), deit_384 56.2% (before: 59.8%), vit_384 59.2% within the
second budget.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from small_recipes import small_recipe
from tencrop.cli.choices import CONF
from tencrop.config import Config, derive_batches
from tencrop.data.augmentation import randaugment
from tencrop.data.augmentation.operations import Operation
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.digits import DigitsSource
from tencrop.data.store.manifest import read_manifest
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule
from tencrop.training.fit import build, fit
from tencrop.training.metric_rows import read_rows
from training.short_recipes import (
    BASE_PASSES,
    BATCH,
    SMALLER,
    SMALLER_THAN_TIMMS_NAMES,
    in_proportion,
    keep_signal,
    passes_of,
    shortened,
    with_kwargs,
)

NUM_IMAGES = 500
ALEXNET_PASSES, ALEXNET_BATCH = 100, 128  # three steps a pass
MAX_ERROR, MAX_ERROR_OF_ALEXNET = 0.6, 0.75  # chance: 0.9
# The recipe that comes before, and the prefix of the last layer if that is new
FINE_TUNED: dict[str, tuple[str, str | None]] = {
    "convnext_384": ("convnext", None),
    "deit_384": ("deit", None),
    "finetune_tiny10": ("resnet18_tiny10", "fc."),
    "swin_384": ("swin", None),
    "vit_384": ("vit_in1k", "head."),
}
REPRESENTED = {"rsb_a1": "rsb_a2"}  # twice the passes, other values of mixup, weight decay and label smoothing
# Training error in percent as measured at the end of the first budget, without stopping at the bound. NIN and All-CNN
# had 100% in an earlier run, before the biases of 4, and All-CNN before its pixels were divided by their deviation.
FIRST_TRY = {
    "alexnet_figure1_relu": 0.0,
    "alexnet_tiny10": 1.0,
    "allcnn": 3.2,
    "bn_inception": 19.6,
    "convmixer": 5.6,
    "convnext": 14.8,
    "googlenet_caffe": 27.8,
    "lenet5_digits": 3.4,
    "lenet5_mnist": 5.6,
    "nin": 11.8,
    "regnet": 48.2,
    "resnet18_tiny10": 3.2,
    "resnet_2015": 32.6,
    "vgg_tiny10": 29.2,
    "wide_resnet": 44.0,
}
# The same for those that stopped at the bound, after 20 to 60 passes
STOPPED = {
    "alexnet_figure1_tanh": 6.8,
    "efficientnet": 58.6,
    "googlenet": 46.4,
    "inception_v3": 51.2,
    "rsb_a2": 38.8,
    "squeezenet": 47.4,
    "swin": 38.6,
    "vgg": 26.8,
}
# So near the bound that the rounding of another machine may decide: they get the second budget, too
NEAR = {"ffcv_rn50": 59.8, "fractalnet": 56.8, "mobilenet_v1": 57.8}
# Those that missed the first budget, with the error at its end, and reached the bound within the second
SECOND_TRY = {
    "deit": 80.4,
    "deit_tiny10": 67.8,
    "densenet": 67.2,
    "ffcv_rn18": 70.2,
    "resnet": 66.6,
    "resnext": 65.0,
    "rsb_a3": 81.2,
    "vit_in1k": 60.8,
    "zfnet": 74.0,
}
SECOND_TRY_OF_FINE_TUNING = {"vit_384": 63.0}
# Missed both budgets, with the error at the end of the second. The first budget is too short for their augmentation: at
# its end, plain ViT has 66.0% without RandAugment, and stochastic depth 40.2% without any augmentation.
MISSED = {"plain_vit_s16": 76.0, "stochastic_depth": 78.6}
LEARNED = (*FIRST_TRY, *STOPPED, *NEAR, *SECOND_TRY)
IN_EVERY_TEST_RUN = ("convmixer", "lenet5_digits", "mobilenet_v1")  # AdamW, SGD, RMSProp; the others are long
NOT_NORMALIZED = ("alexnet_2012", "allcnn", "googlenet", "googlenet_caffe", "nin", "squeezenet", "vgg", "zfnet")


class Learned(NamedTuple):
    error: float  # of the training images, a fraction
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def training_digits(data_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of images; both splits hold all of them, so that val measures the training error."""
    source, folder = DigitsSource(), tmp_path_factory.mktemp("digits")
    files = source.files["train"]  # sorted by digit
    for file in (files[number] for number in np.linspace(0, len(files) - 1, NUM_IMAGES).astype(int)):
        path = folder / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.read("train", file))
    data = data_config(folder, tmp_path_factory.mktemp("prepared_digits"), mode="raw", splits=(".", "."))
    return prepare(data, workers=1, progress=False)


@pytest.fixture(scope="module")
def learned() -> dict[str, Learned]:
    """What the recipes have learned so far, for those that start from it."""
    return {}


@pytest.fixture
def learn(
    composed: Callable[..., Config],
    training_digits: Path,
    learned: dict[str, Learned],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Learned]:
    """learn(name) trains a small network by the recipe, for as many passes as are due to it."""
    for constructor, kwargs in SMALLER_THAN_TIMMS_NAMES.items():
        monkeypatch.setattr(constructor, with_kwargs(pkgutil.resolve_name(constructor), kwargs))
    monkeypatch.setattr(randaugment, "tf_values", in_proportion(randaugment.tf_values))

    def learn_by(
        name: str, *, times: int = 1, start: dict[str, Tensor] | None = None, until: float = MAX_ERROR
    ) -> Learned:
        recipe, is_alexnet = composed(f"experiment={name}"), name == "alexnet_2012"
        words = small_recipe(composed, f"experiment={name}", batch=ALEXNET_BATCH if is_alexnet else BATCH)
        words += [*SMALLER.get(name, "").split(), "data=imagefolder", f"data.root={training_digits}"]
        words.append("data.num_classes=null")
        manifest = read_manifest(training_digits)

        def built(passes: int) -> tuple[DataModule, Classifier]:
            validate = f"training.evaluate_every_epochs={10 if is_alexnet else BASE_PASSES}"
            config = composed(*words, *shortened(recipe, passes), validate)
            return build(config, batches=derive_batches(config), manifest=manifest)

        passes = ALEXNET_PASSES if is_alexnet else times * passes_of(recipe, built(BASE_PASSES)[1].model)
        data, classifier = built(passes)
        keep_signal(classifier)
        if start is not None:
            classifier.model.load_state_dict(start, strict=False)
        folder = tmp_path / name
        folder.mkdir()
        fit(data, classifier, run_dir=folder, callbacks=[Until(until)])
        *_, last = (row for row in read_rows(folder / "metrics.jsonl") if row["split"] == "val")
        error = last["top1_error"]
        print(
            f"{name}: {100 * error:.1f}% of {NUM_IMAGES} training images after {last['epoch']:.0f} passes", flush=True
        )
        learned[name] = Learned(error, classifier.model.state_dict())
        return learned[name]

    return learn_by


class Until(Callback):
    """Ends the training once the error is at most the bound."""

    def __init__(self, max_error: float) -> None:
        self.max_error = max_error

    def on_validation_end(self, trainer: Trainer, classifier: LightningModule) -> None:
        assert isinstance(classifier, Classifier) and classifier.validation is not None
        trainer.should_stop = classifier.validation["top1_error"] <= self.max_error


def test_every_experiment_is_listed() -> None:
    listed = [*LEARNED, *MISSED, *FINE_TUNED, *REPRESENTED, "alexnet_2012"]
    assert sorted(listed) == sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "auto")


def test_pixels_of_tensorflows_randaugment_in_proportion() -> None:
    """At level 1 an image of 32 pixels moves by 14 and loses 10 x 10: 100 and 80 x 80 of 224, rounded down."""
    values = in_proportion(randaugment.tf_values)(np.ones(2), np.array([-1.0, 1.0]), size=32)
    assert values[Operation.TRANSLATE_X].tolist() == values[Operation.TRANSLATE_Y].tolist() == [-14, 14]
    assert values[Operation.CUTOUT].tolist() == [5, 5]
    assert values[Operation.SHEAR_X].tolist() == [-0.3, 0.3]


@pytest.mark.parametrize(
    "name",
    [name if name in IN_EVERY_TEST_RUN else pytest.param(name, marks=pytest.mark.long) for name in LEARNED],
)
def test_a_recipe_learns(name: str, learn: Callable[..., Learned]) -> None:
    assert learn(name, times=times_of(name)).error <= MAX_ERROR


@pytest.mark.long
@pytest.mark.parametrize("name", FINE_TUNED)
def test_a_recipe_for_fine_tuning_keeps_what_was_learned(
    name: str, learn: Callable[..., Learned], learned: dict[str, Learned]
) -> None:
    base, new_layer = FINE_TUNED[name]
    before = learned.get(base) or learn(base, times=times_of(base))
    start = {key: value for key, value in before.weights.items() if not (new_layer and key.startswith(new_layer))}
    after = learn(name, times=times_of(name), start=start, until=MAX_ERROR if new_layer else 0.0)
    assert any(not after.weights[key].equal(before.weights[key]) for key in before.weights)
    assert after.error <= (MAX_ERROR if new_layer else before.error + 0.02)


@pytest.mark.long
def test_alexnet_by_its_own_recipe_does_not_die(learn: Callable[..., Learned]) -> None:
    assert learn("alexnet_2012", until=MAX_ERROR_OF_ALEXNET).error <= MAX_ERROR_OF_ALEXNET


@pytest.mark.parametrize(
    "name", [name if name == "allcnn" else pytest.param(name, marks=pytest.mark.long) for name in NOT_NORMALIZED]
)
def test_the_first_loss_at_full_size_is_near_that_of_chance(
    name: str, composed: Callable[..., Config], prepared_photos: Path, tmp_path: Path
) -> None:
    """Without normalization layers the pixels' size reaches the logits, unless the initialization reduces it."""
    words = [f"experiment={name}", "hardware=cpu", "tracker=none", "data.num_classes=null", "log_every_steps=1"]
    words += [f"data.root={prepared_photos}", "training.global_batch=4", "training.max_steps=1"]
    config, manifest = composed(*words), read_manifest(prepared_photos)
    fit(*build(config, batches=derive_batches(config), manifest=manifest), run_dir=tmp_path)
    loss = next(row["loss"] for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "train")
    assert loss <= 3 * math.log(len(manifest["classes"]))  # GoogLeNet's has two auxiliary losses


def times_of(name: str) -> int:
    """How many times its first budget a recipe gets."""
    return 3 if name in (*NEAR, *SECOND_TRY, *SECOND_TRY_OF_FINE_TUNING) else 1

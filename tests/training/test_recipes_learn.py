"""Every recipe learns: at reduced width and resolution, its own optimizer, schedule, augmentation and loss bring the
error on the training images of a small problem from chance, 90%, to at most 60%.

The problem is 500 handwritten digits, which the recipes read as photographs, mirrored ones and crops of 8% included.
Budgets, written before the first run: 20 passes of 15 steps with 32 images. What a short run needs changes with it: the
epochs of the schedule in proportion to the budget, BatchNorm's momentum to torch's own; moving averages of the weights
are left out. small_recipes.py reduces the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from small_recipes import small_recipe
from tencrop.cli.choices import CONF
from tencrop.config import Config, derive_batches
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.digits import DigitsSource
from tencrop.data.store.manifest import read_manifest
from tencrop.training.fit import build, fit
from tencrop.training.metric_rows import read_rows

EPOCHS, BATCH, NUM_IMAGES = 20, 32, 500
MAX_ERROR = 0.6  # chance: 0.9
NUM_IMAGENET = 1_281_167
IN_EVERY_TEST_RUN = ("mobilenet_v1", "plain_vit_s16", "resnet")  # RMSProp, AdamW, SGD
RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "auto")


@pytest.fixture(scope="module")
def training_digits(data_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 digits as a prepared folder of images; both splits hold all of them, so val measures the training error."""
    source, folder = DigitsSource(), tmp_path_factory.mktemp("digits")
    for file in source.files["train"][:: len(source.files["train"]) // NUM_IMAGES][:NUM_IMAGES]:
        path = folder / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.read("train", file))
    data = data_config(folder, tmp_path_factory.mktemp("prepared_digits"), mode="raw", splits=(".", "."))
    return prepare(data, workers=1, progress=False)


@pytest.mark.parametrize(
    "name", [name if name in IN_EVERY_TEST_RUN else pytest.param(name, marks=pytest.mark.long) for name in RECIPES]
)
def test_a_recipe_learns(name: str, composed: Callable[..., Config], training_digits: Path, tmp_path: Path) -> None:
    words = [*small_recipe(composed, f"experiment={name}", batch=BATCH), *shortened(composed(f"experiment={name}"))]
    config = composed(*words, f"data.root={training_digits}", f"training.evaluate_every_epochs={EPOCHS}")
    manifest = read_manifest(training_digits)
    fit(*build(config, batches=derive_batches(config), manifest=manifest), run_dir=tmp_path)
    (error,) = [row["top1_error"] for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "val"]
    print(f"{name}: {100 * error:.1f}% of {NUM_IMAGES} training images after {EPOCHS} epochs")
    assert error <= MAX_ERROR


def shortened(config: Config) -> list[str]:
    """Words for train.py that give the recipe's schedule EPOCHS epochs."""
    training, schedule = config.training, config.schedule
    epochs = training.epochs or training.steps * training.global_batch / NUM_IMAGENET  # type: ignore[operator]
    words = [
        f"training.epochs={EPOCHS}",
        "training.steps=null",
        "training.ema_decay=null",
        "training.ema_warmup=none",
        "model.bn_momentum=null",
    ]
    words += ["training.minival_fraction=0.1"] if training.minival_fraction else []
    for key in ("warmup_epochs", "decay_epochs"):
        if (value := getattr(schedule, key)) is not None:
            words.append(f"schedule.{key}={value * EPOCHS / epochs}")
    for key in ("milestones", "knots"):
        if (values := getattr(schedule, key)) is not None:
            words.append(f"schedule.{key}={[value * EPOCHS / epochs for value in values]}".replace(" ", ""))
    return words

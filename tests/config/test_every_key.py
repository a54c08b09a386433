"""Every key of train.py and evaluate.py, with whatever can be typed for it: refused in one sentence, or it works."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tencrop.config import Config, UserError, derive_batches, learning_hash, run_path, validate
from tencrop.config.documents import literal
from tencrop.config.fields import dotted_keys
from tencrop.data.augmentation.plan import evaluation_plan, training_plan
from tencrop.evaluation.protocols import num_views
from tencrop.training.optimizers import build_optimizer
from tencrop.training.schedules import learning_rate, schedule_length

# together they use every key of a group that has several choices
RECIPES = {
    "fb.resnet.torch": [],
    "a transformer": ["model=vit_small_patch16_224", "augmentation=deit", "optimizer=adamw", "schedule=cosine"],
    "alexnet": ["augmentation=random_crop", "optimizer=sgd_alexnet", "schedule=plateau", "model.bn_group=null"],
    "efficientnet": ["optimizer=rmsprop_tf", "schedule=exponential", "schedule.unit=epoch"],
    "ffcv": ["optimizer=lamb", "schedule=piecewise"],
    "squeezenet": ["schedule=poly", "training.epochs=null", "training.steps=170"],
    "torch": ["schedule=onecycle"],
}
RECIPES["a transformer"] += ["augmentation.mixing.mix_group=64", "training.ema_decay=0.999", "hardware=gpu8"]
RECIPES["ffcv"] += ["model.blur_pool=true", "augmentation.progressive.start_size=160"]
RECIPES["ffcv"] += ["augmentation.progressive.start_ramp=11", "augmentation.progressive.end_ramp=13"]
RECIPES["alexnet"] += ["training.minival_fraction=0.02", "data.store.mode=proportion", "data.store.jpeg_fraction=0.5"]
NUMBERS = st.integers(-3, 400) | st.integers(-(2**70), 2**70) | st.floats() | st.floats(-1, 2) | st.booleans()
PAIRS = st.lists(NUMBERS, min_size=2, max_size=2)
SCALARS = NUMBERS | st.none() | st.text(max_size=6) | st.sampled_from(["..", "", "auto", "dataset", "[", "${seed}"])
VALUES = SCALARS | PAIRS | st.lists(SCALARS, max_size=3)
LIKELY = {int: NUMBERS, float: NUMBERS, list: PAIRS}  # by the type of the recipe's own value
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes, and a key and its value are small
SIZES = np.array([(300, 400), (64, 900)], np.int32)


@pytest.fixture(scope="module")
def recipes() -> dict[str, dict[str, Any]]:
    from hydra import compose, initialize_config_dir

    from tencrop.cli.choices import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            name: dataclasses.asdict(validate(compose("train", list(words)), Config)) for name, words in RECIPES.items()
        }


@pytest.mark.parametrize("cases", [150, pytest.param(2000, marks=pytest.mark.long)])
def test_a_value_is_refused_in_one_sentence_or_works(recipes: dict[str, dict[str, Any]], cases: int) -> None:
    chosen = settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
    chosen(given(data=st.data())(one))(recipes)


def one(recipes: dict[str, dict[str, Any]], data: st.DataObject) -> None:
    """One key of a recipe changed."""
    values = copy.deepcopy(recipes[data.draw(st.sampled_from(sorted(RECIPES)))])
    key = data.draw(st.sampled_from(dotted_keys(Config)))
    *groups, name = key.split(".")
    group = values
    for part in groups:
        group = group[part] or {}
    group[name] = data.draw(LIKELY.get(type(group.get(name)), VALUES) | VALUES)
    try:
        config = validate(OmegaConf.create(literal(values)), Config)
        batches = derive_batches(config)
    except UserError as error:
        assert ": " in str(error)  # a key, and what is wrong with it
        return
    assert batches.per_device * batches.num_devices == config.training.global_batch
    assert len(learning_hash(config)) == 8 and run_path(config).parts
    learns(config)
    sees(config)


def learns(config: Config) -> None:
    """A step of the optimizer, and every kind of step of the schedule."""
    total = schedule_length(config.training, 10)
    warmup = round(config.schedule.warmup_epochs * 10)
    for step in {0, max(0, min(warmup - 1, total - 1)), min(warmup, total - 1), total // 2, total - 1}:
        rate = learning_rate(
            config.schedule, base_lr=config.optimizer.lr, step=step, steps_per_epoch=10, total_steps=total
        )
        assert math.isfinite(rate) and rate >= 0
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    alike = dataclasses.replace(config.optimizer, layer_decay=None)  # a single weight has no layers
    optimizer = build_optimizer(alike, torch.nn.ParameterList([weight]))
    weight.grad = torch.tensor([[0.5, 0.0], [0.0, -0.5]], dtype=torch.float64)
    optimizer.step()
    assert weight.isfinite().all()


def sees(config: Config) -> None:
    """The plan of two training samples and of two evaluation samples."""
    index = np.arange(2)
    plan = training_plan(index, SIZES, augmentation=config.augmentation, seed=config.seed, epoch=0, positions=index)
    assert (plan.boxes[:, :2] >= 0).all() and (plan.boxes[:, 2:] > 0).all()
    assert (plan.boxes[:, :2] + plan.boxes[:, 2:] <= SIZES).all()
    assert all(np.isfinite(values).all() for values in plan.params.values() if values.dtype.kind == "f")
    assert num_views(config.protocol) > 0
    for side in config.protocol.sides:
        one = dataclasses.replace(config.protocol, side=side)
        assert (evaluation_plan(index, SIZES, protocol=one).sizes > 0).all()

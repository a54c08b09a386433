"""Sizes per epoch against ffcv-imagenet's table, and the plan of an epoch at its size."""

from __future__ import annotations

import dataclasses
from itertools import groupby

import numpy as np
import pytest

from tencrop.config import Augmentation, Erasing, Mixing, Pca, RandAugment
from tencrop.config.schema import Progressive
from tencrop.data.augmentation.plan import training_plan
from tencrop.data.augmentation.progressive import size_at, training_sizes
from tencrop.tables.reading import read_table

# ffcv-imagenet, rn50_configs and rn18_configs: epochs -> start_ramp, end_ramp; all from 160 to 192 pixels
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
STORED = np.array([(300, 400), (64, 900), (375, 500), (500, 333)], np.int32)


def augmentation(size: int, ramp: Progressive, **options) -> Augmentation:
    crop = {"crop": "random_resized", "area": [0.08, 1.0], "aspect": [3 / 4, 4 / 3]}
    return Augmentation(
        **{**crop, **options}, size=size, filter="bilinear", flip=0.5, pca=Pca(0.0, "dataset"), progressive=ramp
    )


def authors_size(epoch: int, *, min_res: int, max_res: int, start_ramp: int, end_ramp: int) -> int:
    """get_resolution of ffcv-imagenet's train_imagenet.py, in its own steps."""
    if epoch <= start_ramp:
        return min_res
    if epoch >= end_ramp:
        return max_res
    (between,) = np.interp([epoch], [start_ramp, end_ramp], [min_res, max_res])
    return int(np.round(between / 32)) * 32


@pytest.mark.parametrize("num_epochs", RAMPS)
def test_sizes_of_ffcv_imagenet(num_epochs):
    start, end = RAMPS[num_epochs]
    ours = augmentation(192, Progressive(160, start, end))
    sizes = [size_at(ours, epoch) for epoch in range(num_epochs)]
    theirs = {"min_res": 160, "max_res": 192, "start_ramp": start, "end_ramp": end}
    assert sizes == [authors_size(epoch, **theirs) for epoch in range(num_epochs)]
    assert [size for size, _ in groupby(sizes)] == [160, 192] == training_sizes(ours)


@pytest.mark.parametrize("network", ["resnet50", "resnet18"])
def test_the_rows_of_the_table_have_the_authors_epochs(network, composed):
    rows = [row for row in read_table("ffcv_imagenet").rows if row.id.startswith(network)]
    overrides = {row.id: row.training.overrides for row in rows if row.training is not None}
    assert len(overrides) == len(rows) == len(RAMPS)
    for num_epochs, (start, end) in RAMPS.items():
        config = composed(*overrides[f"{network}_{num_epochs}"])
        assert config.augmentation.progressive == Progressive(160, start, end)
        assert (config.training.epochs, config.augmentation.size, config.model.name) == (num_epochs, 192, network)
        assert config.schedule.knots == [0, 2, num_epochs]


def test_sizes_between_are_multiples_of_32():
    ours = augmentation(256, Progressive(128, 2, 11))
    theirs = {"min_res": 128, "max_res": 256, "start_ramp": 2, "end_ramp": 11}
    assert [size_at(ours, epoch) for epoch in range(20)] == [authors_size(epoch, **theirs) for epoch in range(20)]
    assert training_sizes(ours) == [128, 160, 192, 224, 256]
    eights = augmentation(32, Progressive(16, 0, 4, multiple=8))
    assert [size_at(eights, epoch) for epoch in range(6)] == [16, 16, 24, 32, 32, 32]


def test_without_it_every_epoch_has_the_size_of_the_recipe():
    ours = augmentation(224, Progressive())
    assert {size_at(ours, epoch) for epoch in range(100)} == {224} and training_sizes(ours) == [224]


def test_the_plan_of_an_epoch_is_that_of_a_recipe_with_its_size():
    """Boxes and flips do not depend on the size; erased, pasted and cut-out boxes lie in an image of the size."""
    every = {
        "randaugment": RandAugment(source="tf", num_ops=2),
        "erasing": Erasing(prob=1.0),
        "mixing": Mixing(cutmix_alpha=1.0, mix_group=2),
    }
    index, growing = np.arange(4), augmentation(192, Progressive(96, 0, 3), **every)
    for epoch, size in enumerate((96, 128, 160, 192)):
        plan, expected, full = (
            training_plan(index, STORED, augmentation=one, seed=1, epoch=epoch, positions=index)
            for one in (growing, augmentation(size, Progressive(), **every), augmentation(192, Progressive(), **every))
        )
        assert np.array_equal(plan.sizes, np.full((4, 2), size))
        assert np.array_equal(plan.boxes, full.boxes) and np.array_equal(plan.flips, full.flips)
        assert plan.params.keys() == expected.params.keys() >= {"erased_boxes", "mix_boxes", "cutout_centers"}
        assert all(np.array_equal(plan.params[name], expected.params[name]) for name in plan.params)
        assert (plan.params["erased_boxes"] != full.params["erased_boxes"]).any() == (size != 192)


def test_no_epoch_changes_the_recipe():
    growing = augmentation(64, Progressive(32, 0, 2))
    before = dataclasses.asdict(growing)
    training_plan(np.arange(4), STORED, augmentation=growing, seed=0, epoch=0)
    assert dataclasses.asdict(growing) == before

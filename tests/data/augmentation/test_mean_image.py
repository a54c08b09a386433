"""Subtraction of the mean image, pixel by pixel in a slow loop: training crops, mirrored ones, and all test views.

And of its center, which is the same for every crop.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from tencrop.config import Augmentation, Config, Normalization, Pca, Protocol, UserError
from tencrop.config.schema import Region
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import Normalize
from tencrop.data.augmentation.mean_image import USE, central_mean, mean_image_of, mean_side
from tencrop.data.augmentation.plan import training_plan
from tencrop.evaluation.inference import view_logits
from typed import present, stand_in

Use = Literal["image", "image_center"]
SIZE, STD = 224, [50.0, 60.0, 70.0]
MEAN_IMAGE = np.random.default_rng(0).uniform(80, 140, (256, 256, 3)).astype(np.float32)
CENTER = MEAN_IMAGE[16:240, 16:240]
STATISTICS = {"mean": [110.0, 111.0, 112.0], "std": STD, "mean_image": MEAN_IMAGE}
ALEXNET = Augmentation("random", SIZE, "bilinear", 0.5, Pca(0.0, "torch"), side=[256, 256], region="square")
# Top and left corner of every view in the square, as the papers and the README number them.
TEN = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
GRID = [(row * 8, column * 8) for row in range(5) for column in range(5)]
VIEWS = {
    "center": TEN[4:],
    "flip_pair": TEN[4:],
    "five_crop": TEN,
    "ten_crop": TEN,
    "grid_crop": GRID,
    "dense": [(0, 0)],
}
ONE_SIDED = ("center", "five_crop")


def subtracted(
    image: np.ndarray, top: int, left: int, *, is_mirrored: bool, mean_image: np.ndarray = MEAN_IMAGE
) -> np.ndarray:
    """(pixel - mean) / std of a view uint8 [H, W, 3] as the network sees it, [3, H, W], one pixel at a time."""
    height, width, _ = image.shape
    result = np.empty((3, height, width))
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if is_mirrored else x
            mean = mean_image[top + y, left + column].astype(np.float64)
            result[:, y, x] = (image[y, x].astype(np.float64) - mean) / STD
    return result


def normalization(mean: Use = "image") -> Normalization:
    return Normalization(mean, STD)


def test_training_crops_and_mirrored_ones():
    """The images of the store have the scale of the crops, so that boxes in it are boxes in the square."""
    stored = np.array([(256, 300), (310, 256), (256, 256), (256, 259), (256, 300), (256, 256)], np.int32)
    plan = training_plan(np.arange(6), stored, augmentation=ALEXNET, seed=0, epoch=0, mean_side=256)
    assert set(plan.flips) == {True, False}
    model = SimpleNamespace(channels_last=False)
    config = configured(normalization(), augmentation=ALEXNET, model=model)
    module = Normalize(config, STATISTICS)
    images = np.random.default_rng(1).integers(256, size=(6, SIZE, SIZE, 3)).astype(np.uint8)
    params = {name: torch.from_numpy(plan.params[name]) for name in ("pca_alphas", "mean_crop_params")}
    params["pca_alphas"] = params["pca_alphas"].float()
    found = module(torch.from_numpy(images), params)
    for number in range(6):
        top, left = plan.boxes[number, :2] - np.rint((stored[number] - 256) / 2).astype(int)
        expected = subtracted(images[number], top, left, is_mirrored=plan.flips[number])
        np.testing.assert_allclose(found[number], expected, atol=2e-5)


@pytest.mark.parametrize("stored", [(512, 600), (375, 500), (2000, 1500)])
def test_mean_crops_do_not_depend_on_the_scale_of_the_store(stored):
    """Boxes in stored pixels, brought to the scale of the square, are the crops of the mean image, up to rounding."""
    sizes = np.full((200, 2), stored, np.int32)
    plan = training_plan(np.arange(200), sizes, augmentation=ALEXNET, seed=3, epoch=1, mean_side=256)
    scale = 256 / min(stored)
    corners = plan.boxes[:, :2] * scale - (np.array(stored) * scale - 256) / 2
    assert np.abs(corners - plan.params["mean_crop_params"][:, :2]).max() <= 1.5
    assert plan.params["mean_crop_params"][:, 2].tolist() == plan.flips.tolist()
    assert set(plan.params["mean_crop_params"][:, 0]) <= set(range(33))


def test_other_runs_have_no_mean_crops_and_keep_their_digest():
    assert (
        "mean_crop_params"
        not in training_plan(np.arange(2), np.full((2, 2), 256, np.int32), augmentation=ALEXNET, seed=0, epoch=0).params
    )


class Pixels(nn.Module):
    """A network whose logits are its inputs."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)


@pytest.mark.parametrize(
    ("name", "resize"), [*((name, "shorter_side") for name in VIEWS if name != "dense"), ("dense", "warp")]
)
def test_every_view_of_every_protocol(name, resize):
    region: Region = "square" if resize == "shorter_side" else "whole"
    protocol = Protocol(name, 256, SIZE, region, "bilinear", "softmax", resize)
    images = np.random.default_rng(2).integers(256, size=(1, 256, 256, 3)).astype(np.uint8)
    found = pixels_of_views(images, protocol, normalization(), MEAN_IMAGE)
    side = 256 if name == "dense" else SIZE
    reflections = (False,) if name in ONE_SIDED else (False, True)
    places = [(*corner, is_mirrored) for is_mirrored in reflections for corner in VIEWS[name]]
    assert len(found) == len(places)
    # The slow loop takes 0.3 s a view: all ten of ten_crop, the first and the last of the others.
    for number in range(len(places)) if name == "ten_crop" else (0, len(places) - 1):
        top, left, is_mirrored = places[number]
        view = images[0, top : top + side, left : left + side]
        view = view[:, ::-1] if is_mirrored else view
        expected = subtracted(view, top, left, is_mirrored=is_mirrored)
        np.testing.assert_allclose(found[number, 0].view(3, side, side), expected, atol=2e-5)


def pixels_of_views(
    images: np.ndarray, protocol: Protocol, choice: Normalization, mean_image: np.ndarray
) -> torch.Tensor:
    """All views of uint8 images [1, H, W, 3] as a network gets them, [V, 1, 3 * H * W]."""
    sizes, index, flips = np.array([images.shape[1:3]], np.int32), np.zeros(1, np.int64), np.zeros(1, bool)
    nothing = np.zeros(1, np.int32)
    batch = Batch(torch.from_numpy(images), torch.zeros(1).long(), index, nothing, flips, sizes, {}, index)
    config = stand_in(
        Config,
        protocol=protocol,
        normalization=choice,
        model=SimpleNamespace(channels_last=False),
        training=SimpleNamespace(precision="fp32"),
    )
    return view_logits(Pixels(), batch, torch.from_numpy(mean_image), torch.tensor(STD), config)


def test_validation_subtracts_the_center():
    images: dict[Use, np.ndarray] = {"image": MEAN_IMAGE, "image_center": CENTER}
    for choice, image in images.items():
        center = central_mean(torch.from_numpy(image), normalization(choice), size=SIZE)
        assert np.array_equal(center[0].permute(1, 2, 0), CENTER)


def test_the_center_is_subtracted_from_training_crops_of_any_place():
    """Of images whose shorter side is in [256, 480]; the crop of a mirrored image gets the mirrored center."""
    resnet = replace(ALEXNET, side=[256, 480], region="whole")
    stored = np.array([(480, 600), (500, 375), (256, 256), (1000, 600)], np.int32)
    choice = normalization("image_center")
    side = mean_side(choice, size=SIZE)
    plan = training_plan(np.arange(4), stored, augmentation=resnet, seed=1, epoch=0, mean_side=side)
    assert set(plan.flips) == {True, False} and len(set(plan.boxes[:, 0])) > 1
    config = configured(choice, augmentation=resnet, model=SimpleNamespace(channels_last=False))
    images = np.random.default_rng(1).integers(256, size=(4, SIZE, SIZE, 3)).astype(np.uint8)
    params = {name: torch.from_numpy(plan.params[name]) for name in ("pca_alphas", "mean_crop_params")}
    params["pca_alphas"] = params["pca_alphas"].float()
    found = Normalize(config, STATISTICS)(torch.from_numpy(images), params)
    for number in range(4):
        expected = subtracted(images[number], 0, 0, is_mirrored=bool(plan.flips[number]), mean_image=CENTER)
        np.testing.assert_allclose(found[number], expected, atol=2e-5)


@pytest.mark.parametrize("name", [*(name for name in VIEWS if name != "dense"), "crops_144"])
def test_the_center_is_subtracted_from_every_crop(name):
    """Gray images: what differs between the views is the mean image. Images of other sides than the mean image's."""
    protocol = Protocol(name, 300, SIZE, "whole", "bilinear", "softmax", "shorter_side")
    gray = np.full((1, 300, 320, 3), 128, np.uint8)
    found = pixels_of_views(gray, protocol, normalization("image_center"), CENTER).view(-1, 3, SIZE, SIZE)
    num_plain = len(found) if name in ONE_SIDED else len(found) // 2
    gray_crop = gray[0, :SIZE, :SIZE]
    for number, is_mirrored in ((0, False), (num_plain - 1, False), (len(found) - 1, name not in ONE_SIDED)):
        expected = subtracted(gray_crop, 0, 0, is_mirrored=is_mirrored, mean_image=CENTER)
        np.testing.assert_allclose(found[number], expected, atol=2e-5)


def test_whole_images_have_the_center_resized():
    """At the corners and along a line of the middle, against the bilinear formula."""
    height, width = 300, 448
    protocol = Protocol("dense", 300, SIZE, "whole", "bilinear", "softmax", "shorter_side")
    image = np.random.default_rng(3).integers(256, size=(1, height, width, 3)).astype(np.uint8)
    plain, mirrored = pixels_of_views(image, protocol, normalization("image_center"), CENTER).view(2, 3, height, width)
    for y, x in [(0, 0), (height - 1, width - 1), *((150, x) for x in range(0, width, 50))]:
        for view, column in ((plain, x), (mirrored, width - 1 - x)):
            expected = (image[0, y, x] - bilinear(CENTER, y, x, height, width)) / STD
            np.testing.assert_allclose(view[:, y, column], expected, atol=1e-4)


def bilinear(image: np.ndarray, y: int, x: int, height: int, width: int) -> np.ndarray:
    """One pixel of `image` stretched to height x width; pixel centers lie at .5."""
    row = np.clip((y + 0.5) * len(image) / height - 0.5, 0, len(image) - 1)
    column = np.clip((x + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, len(image) - 1), min(left + 1, image.shape[1] - 1)
    corners = image.astype(np.float64)
    upper = corners[top, left] * (1 - column + left) + corners[top, right] * (column - left)
    lower = corners[bottom, left] * (1 - column + left) + corners[bottom, right] * (column - left)
    return upper * (1 - row + top) + lower * (row - top)


def test_trained_weights_keep_the_image_that_they_were_trained_with():
    config, center = configured(normalization("image_center")), torch.from_numpy(CENTER)
    assert torch.equal(present(mean_image_of(config, STATISTICS, size=SIZE)), center)
    trained = STATISTICS | {"mean_image": center, USE: "image_center"}
    assert torch.equal(present(mean_image_of(config, trained, size=160)), center)
    with pytest.raises(UserError, match="were trained with the center of a mean image alone; leave"):
        mean_image_of(configured(normalization()), trained, size=SIZE)


def test_the_center_is_the_part_that_a_test_crop_has():
    """28 of 32 pixels are the central 224 of 256, eight to a pixel; a gradient survives the resize, noise averages."""
    ramp = np.tile(np.arange(256, dtype=np.float32)[:, None, None], (1, 256, 3))
    config = configured(normalization("image_center"), image_size=28, short_side=32)
    found = present(mean_image_of(config, STATISTICS | {"mean_image": ramp}, size=28))
    assert found.shape == (28, 28, 3)
    np.testing.assert_allclose(found[1:-1, 0, 0], 16 + 8 * (np.arange(28) + 0.5)[1:-1] - 0.5, atol=1e-4)
    kept = configured(normalization("image_center"), image_size=64, short_side=None)  # images are not rescaled
    found = present(mean_image_of(kept, STATISTICS | {"mean_image": ramp}, size=64))
    np.testing.assert_allclose(found[1:-1, 0, 0], 4 * (np.arange(64) + 0.5)[1:-1] - 0.5, atol=1e-4)


def configured(choice: Normalization, **attributes: object) -> Config:
    return stand_in(Config, **{"normalization": choice, "image_size": SIZE, "short_side": 256, **attributes})


@pytest.mark.parametrize("choice", ["image", "image_center"])
def test_weights_without_a_mean_image_are_refused(choice):
    with pytest.raises(UserError, match=f"mean={choice}: the checkpoint holds no mean image"):
        mean_image_of(configured(normalization(choice)), {"mean": [1.0, 2.0, 3.0], "std": STD}, size=SIZE)
    assert mean_image_of(configured(Normalization("dataset", STD)), STATISTICS, size=SIZE) is None

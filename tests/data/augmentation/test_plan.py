"""Plans against slow scalar implementations of the papers' algorithms, and golden boxes that must never change."""

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tencrop.config import Augmentation, Erasing, Jitter, Mixing, Pca, Protocol, RandAugment
from tencrop.data.augmentation.plan import Plan, evaluation_plan, training_plan
from tencrop.data.sampling.geometry import rescaled_size
from tencrop.data.sampling.rng import Stream, normals, random_uint64, uniforms

AREA, ASPECT = [0.08, 1.0], [3 / 4, 4 / 3]
LENGTHS = st.integers(1, 3000)
SEEDS = st.integers(0, 2**64 - 1)
GOLDEN_RANDOM_RESIZED = [
    [132, 132, 154, 126],
    [32, 7, 264, 322],
    [27, 0, 29, 29],
    [0, 0, 1, 1],
    [0, 573, 40, 53],
    [130, 103, 242, 293],
]
GOLDEN_FLIPS = [False, True, False, False, True, True]
GOLDEN_COLOR = [
    [0.23868574367469442, 0.036750335945300354, -0.06510509049696443],
    [0.03870244205669728, 0.08152200665829713, -0.017885913638939405],
]
GOLDEN_SQUARE = [
    [6, 89, 328, 329],
    [118, 5, 292, 292],
    [8, 6, 56, 56],
    [0, 0, 1, 1],
    [2, 583, 35, 35],
    [51, 81, 420, 420],
]
GOLDEN_JITTER = [
    [18, 248, 173, 174],
    [63, 37, 287, 287],
    [14, 7, 33, 33],
    [0, 0, 1, 1],
    [2, 856, 24, 25],
    [86, 354, 285, 286],
]


def arrays(plan) -> dict:
    """All arrays of a plan by name, in the order of the digest."""
    return {name: value for name, value in (plan._asdict() | plan.params).items() if name != "params"}


def augmentation(crop="random_resized", *, size=224, flip=0.5, pca=0.0, **kwargs) -> Augmentation:
    kwargs = kwargs or ({"area": AREA, "aspect": ASPECT} if crop == "random_resized" else {})
    return Augmentation(crop=crop, size=size, filter="bilinear", flip=flip, pca=Pca(pca, "dataset"), **kwargs)


def on_each_sample() -> dict:
    return {
        "jitter": Jitter("torchvision", 0.4, 0.4, 0.4, 0.1),
        "randaugment": RandAugment("timm", num_ops=2, std=0.5),
        "erasing": Erasing(1.0),
    }


def everything(mix_group: int) -> Augmentation:
    return dataclasses.replace(
        augmentation(pca=0.1),
        **on_each_sample(),
        mixing=Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=1.0, mix_group=mix_group),
    )


def protocol(side=256, size=224, region="whole", resize="shorter_side") -> Protocol:
    return Protocol("center", side=side, size=size, region=region, filter="bilinear", average="softmax", resize=resize)


def sizes_of(*pairs) -> np.ndarray:
    return np.array(pairs, np.int32)


def inside(plan: Plan, stored_sizes) -> bool:
    top, left, height, width = plan.boxes.T
    image_height, image_width = stored_sizes[plan.index].T
    fits = (top >= 0) & (left >= 0) & (height >= 1) & (width >= 1)
    return bool(np.all(fits & (top + height <= image_height) & (left + width <= image_width)))


def scalar_random_resized(height: int, width: int, draw: list[int], area, aspect) -> list[int]:
    """torchvision's RandomResizedCrop.get_params, fed with our draws, one sample at a time in Python numbers."""
    for attempt in range(10):
        share, ratio, top, left = draw[4 * attempt : 4 * attempt + 4]
        target_area = height * width * (area[0] + (area[1] - area[0]) * ((share >> 11) / 2**53))
        low, high = math.log(aspect[0]), math.log(aspect[1])
        aspect_ratio = math.exp(low + (high - low) * ((ratio >> 11) / 2**53))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return [top * (height - h + 1) >> 64, left * (width - w + 1) >> 64, h, w]
    h, w = height, width
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    return [(height - h) // 2, (width - w) // 2, h, w]


def test_golden_boxes():
    """Pinned: with other boxes no recorded run could be reproduced."""
    stored = sizes_of((375, 500), (500, 333), (64, 64), (1, 1), (40, 1200), (480, 640))
    plan = training_plan(np.arange(6), stored, augmentation=augmentation(pca=0.1), seed=0, epoch=0)
    assert plan.boxes.tolist() == GOLDEN_RANDOM_RESIZED
    assert plan.flips.tolist() == GOLDEN_FLIPS
    np.testing.assert_allclose(plan.params["pca_alphas"][:2], GOLDEN_COLOR, rtol=1e-12)
    square = augmentation("random", side=[256, 256], region="square")
    assert training_plan(np.arange(6), stored, augmentation=square, seed=0, epoch=0).boxes.tolist() == GOLDEN_SQUARE
    jitter = augmentation("random", side=[256, 512], region="whole")
    assert training_plan(np.arange(6), stored, augmentation=jitter, seed=1, epoch=2).boxes.tolist() == GOLDEN_JITTER


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=6), SEEDS, st.integers(0, 300))
def test_random_resized_is_torchvisions_algorithm(pairs, seed, epoch):
    stored, index = sizes_of(*pairs), np.arange(len(pairs))
    plan = training_plan(index, stored, augmentation=augmentation(), seed=seed, epoch=epoch)
    draw = random_uint64(seed=seed, index=index, epoch=epoch, stream=Stream.CROP, count=40).tolist()
    assert plan.boxes.tolist() == [scalar_random_resized(h, w, draw[i], AREA, ASPECT) for i, (h, w) in enumerate(pairs)]
    assert inside(plan, stored)


def scalar_random_sized(height: int, width: int, draw: list[int], area, aspect) -> list[int]:
    """fb.resnet.torch's RandomSizedCrop, fed with our draws, one sample at a time in Python numbers."""
    for attempt in range(10):
        share, ratio, top, left = draw[4 * attempt : 4 * attempt + 4]
        target_area = height * width * (area[0] + (area[1] - area[0]) * ((share >> 11) / 2**53))
        aspect_ratio = aspect[0] + (aspect[1] - aspect[0]) * ((ratio >> 11) / 2**53)
        w, h = math.sqrt(target_area * aspect_ratio), math.sqrt(target_area / aspect_ratio)
        if draw[40 + attempt] < 2**63:
            w, h = h, w
        w, h = round(w), round(h)
        if 0 < w <= width and 0 < h <= height:
            return [top * (height - h + 1) >> 64, left * (width - w + 1) >> 64, h, w]
    side = min(height, width)
    return [math.ceil((height - side) / 2), math.ceil((width - side) / 2), side, side]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=6), SEEDS, st.integers(0, 300))
def test_random_sized_is_fb_resnet_torchs_algorithm(pairs, seed, epoch):
    stored, index = sizes_of(*pairs), np.arange(len(pairs))
    options = augmentation("random_sized", area=AREA, aspect=ASPECT)
    plan = training_plan(index, stored, augmentation=options, seed=seed, epoch=epoch)
    draw = random_uint64(seed=seed, index=index, epoch=epoch, stream=Stream.CROP, count=50).tolist()
    assert plan.boxes.tolist() == [scalar_random_sized(h, w, draw[i], AREA, ASPECT) for i, (h, w) in enumerate(pairs)]
    assert inside(plan, stored)


def test_aspect_or_its_inverse_is_uniform_in_fb_resnet_torch():
    stored = np.full((4000, 2), (2000, 2000), np.int32)
    options = augmentation("random_sized", area=[0.1, 0.5], aspect=ASPECT)
    height, width = training_plan(np.arange(4000), stored, augmentation=options, seed=0, epoch=0).boxes[:, 2:].T
    uniform = stats.uniform(3 / 4, 4 / 3 - 3 / 4).cdf

    def law(ratio):
        return (uniform(ratio) + 1 - uniform(1 / ratio)) / 2

    assert stats.kstest(width / height, law).pvalue > 0.01


@settings(max_examples=50, deadline=None)
@given(LENGTHS, LENGTHS, st.floats(0.01, 1), st.floats(0.05, 20), st.floats(1, 8))
def test_random_resized_fits_under_any_range(height, width, least_area, aspect, spread):
    options = augmentation(area=[least_area, 1.0], aspect=[aspect, aspect * spread])
    stored = sizes_of((height, width))
    for epoch in range(5):
        assert inside(training_plan(np.zeros(1, int), stored, augmentation=options, seed=0, epoch=epoch), stored)


def test_random_resized_covers_the_area_and_aspect_it_promises():
    stored = np.full((4000, 2), (500, 500), np.int32)
    plan = training_plan(np.arange(4000), stored, augmentation=augmentation(), seed=0, epoch=0)
    height, width = plan.boxes[:, 2].astype(float), plan.boxes[:, 3].astype(float)
    share = height * width / 250_000
    assert 0.079 < share.min() < 0.09 and 0.95 < share.max() <= 1
    assert 0.74 < (width / height).min() < 0.76 and 1.32 < (width / height).max() < 1.35
    assert abs(np.log(width / height).mean()) < 0.01  # as often wide as tall
    free = plan.boxes[height < 400]
    relative = free[:, 0] / (500 - free[:, 2])
    assert abs(relative.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(free))


@settings(max_examples=100, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(1, 300), st.integers(0, 200), SEEDS, st.sampled_from(["whole", "square"]))
def test_random_boxes_are_the_window_mapped_to_stored_pixels(height, width, size, more, seed, region):
    options = augmentation("random", size=size, side=[size, size + more], region=region)
    stored = sizes_of((height, width))
    plan = training_plan(np.zeros(1, int), stored, augmentation=options, seed=seed, epoch=0)
    assert inside(plan, stored)
    scale, *place = random_uint64(seed=seed, index=np.zeros(1, int), epoch=0, stream=Stream.CROP, count=3)[0].tolist()
    side = size + (scale * (more + 1) >> 64)
    for axis, (length, rescaled) in enumerate(zip((height, width), rescaled_size(height, width, side), strict=True)):
        extent = side if region == "square" else rescaled
        origin = round((rescaled - side) / 2.0) if region == "square" else 0
        start = origin + (place[axis] * (extent - size + 1) >> 64)
        assert 0 <= start <= rescaled - size
        assert abs(plan.boxes[0, axis] - start * length / rescaled) <= 1
        assert abs(plan.boxes[0, axis + 2] - size * length / rescaled) <= 1


@pytest.mark.parametrize("region", ["whole", "square"])
def test_random_crop_of_a_store_at_its_scale_needs_no_resize(region):
    """A store with this short side is cropped, not resampled; every position in the region occurs."""
    stored = np.full((3000, 2), (256, 300), np.int32)
    options = augmentation("random", size=224, side=[256, 256], region=region)
    plan = training_plan(np.arange(3000), stored, augmentation=options, seed=0, epoch=0)
    assert np.all(plan.boxes[:, 2:] == 224)
    assert set(plan.boxes[:, 0]) == set(range(33))
    columns = range(22, 22 + 33) if region == "square" else range(77)
    assert set(plan.boxes[:, 1]) == set(columns)


def test_scale_jitter_draws_every_side():
    stored = np.full((2000, 2), (512, 512), np.int32)
    options = augmentation("random", size=224, side=[256, 260], region="whole")
    plan = training_plan(np.arange(2000), stored, augmentation=options, seed=0, epoch=0)
    sides = np.round(224 * 512 / plan.boxes[:, 2]).astype(int)
    assert set(sides) == {256, 257, 258, 259, 260}


def test_no_crop_takes_the_whole_image():
    stored = sizes_of((375, 500), (32, 32))
    plan = training_plan(
        np.array([1, 0]), stored, augmentation=augmentation("none", size=32, flip=0.0), seed=0, epoch=0
    )
    assert plan.boxes.tolist() == [[0, 0, 32, 32], [0, 0, 375, 500]]
    assert plan.sizes.tolist() == [[32, 32], [32, 32]]
    assert not plan.flips.any() and not plan.params["pca_alphas"].any()


def test_flips_and_color_are_independent_draws():
    stored, index = np.full((500, 2), 64, np.int32), np.arange(500)
    options = augmentation(flip=0.3, pca=0.1)
    plan = training_plan(index, stored, augmentation=options, seed=3, epoch=4, view=1)
    flips = uniforms(seed=3, index=index, epoch=4, view=1, stream=Stream.FLIP, count=1)[:, 0] < 0.3
    assert np.array_equal(plan.flips, flips)
    alphas = normals(seed=3, index=index, epoch=4, view=1, stream=Stream.PCA, count=3) * 0.1
    assert np.array_equal(plan.params["pca_alphas"], alphas)


@pytest.mark.parametrize(("flip", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_certain_flips(flip, share):
    stored = np.full((500, 2), 64, np.int32)
    plan = training_plan(np.arange(500), stored, augmentation=augmentation(flip=flip), seed=0, epoch=0)
    assert plan.flips.mean() == share


@pytest.mark.parametrize("crop", ["random_resized", "random_sized", "random_sized_tf", "random"])
def test_a_samples_plan_does_not_depend_on_its_batch(crop):
    rng = np.random.default_rng(0)
    stored, index = rng.integers(1, 700, (67, 2)).astype(np.int32), np.arange(67)
    kwargs: dict[str, Any] = (
        {"side": [224, 512], "region": "whole"} if crop == "random" else {"area": AREA, "aspect": ASPECT}
    )
    kwargs |= {"min_object_covered": 0.1} if crop == "random_sized_tf" else {}
    options = dataclasses.replace(augmentation(crop, pca=0.1, **kwargs), **on_each_sample())
    view = np.arange(67) % 3
    whole = training_plan(index, stored, augmentation=options, seed=1, epoch=2, view=view)
    for part in (index[:1], index[5:9], index[::-3], index[60:]):
        plan = training_plan(part, stored, augmentation=options, seed=1, epoch=2, view=view[part])
        for name, values in arrays(plan).items():
            assert np.array_equal(values, arrays(whole)[name][part]), name


def test_epochs_and_views_differ():
    stored = np.full((50, 2), 500, np.int32)
    plans = [
        training_plan(np.arange(50), stored, augmentation=augmentation(), seed=seed, epoch=epoch, view=view).boxes
        for seed, epoch, view in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert all(not np.array_equal(plans[i], plans[j]) for i in range(4) for j in range(i))


def test_evaluation_takes_the_whole_image_or_the_square():
    stored = sizes_of((375, 500), (500, 333), (256, 256), (1, 7))
    plan = evaluation_plan(np.arange(4), stored, protocol=protocol())
    assert plan.boxes.tolist() == [[0, 0, 375, 500], [0, 0, 500, 333], [0, 0, 256, 256], [0, 0, 1, 7]]
    assert plan.sizes.tolist() == [[256, 341], [384, 256], [256, 256], [256, 1792]]
    square = evaluation_plan(np.arange(4), stored, protocol=protocol(region="square"))
    assert square.boxes.tolist() == [[0, 62, 375, 375], [84, 0, 333, 333], [0, 0, 256, 256], [0, 3, 1, 1]]
    assert np.all(square.sizes == 256)
    kept = evaluation_plan(np.array([1]), stored, protocol=protocol(side=None))
    assert kept.sizes.tolist() == [[500, 333]]
    assert not plan.flips.any() and not plan.params["pca_alphas"].any()


def test_an_image_is_stretched_whole_or_by_its_central_share():
    """256 x 341: a sixteenth, 16 rows and 21 of 21.3 columns, is cut off at each edge, as TensorFlow rounds."""
    stored = np.array([[256, 341], [500, 333], [9, 15]], np.int32)
    warped = evaluation_plan(np.arange(3), stored, protocol=protocol(side=227, resize="warp"))
    assert warped.boxes.tolist() == [[0, 0, 256, 341], [0, 0, 500, 333], [0, 0, 9, 15]]
    assert warped.sizes.tolist() == [[227, 227]] * 3
    central = evaluation_plan(np.arange(3), stored, protocol=protocol(side=None, size=299, resize="central_fraction"))
    assert central.boxes.tolist() == [[16, 21, 224, 299], [31, 20, 438, 293], [0, 0, 9, 15]]
    assert central.sizes.tolist() == [[299, 299]] * 3
    for (height, width), (top, left, box_height, box_width) in zip(stored, central.boxes, strict=True):
        assert (top, left) == (int((height - height * 0.875) / 2), int((width - width * 0.875) / 2))
        assert (box_height, box_width) == (height - 2 * top, width - 2 * left)


def test_dtypes_and_shapes_of_a_plan():
    stored, positions = np.full((3, 2), 9, np.int32), np.arange(3)
    plain = training_plan(np.arange(3), stored, augmentation=augmentation(), seed=0, epoch=0)
    full = training_plan(np.arange(3), stored, augmentation=everything(3), seed=0, epoch=0, positions=positions)
    for plan in (plain, full, evaluation_plan(np.arange(3), stored, protocol=protocol())):
        assert [array.dtype.str for array in arrays(plan).values()] == [
            "<i8", "<i4", "<i4", "|b1", "<f8", "<f8", "<i8", "<i8", "<f8", "<i4", "<i8", "<i8", "<f8", "<i4",
        ]  # fmt: skip


def test_operations_that_are_off_have_neutral_values():
    """With these values the functions on the device change no pixel."""
    plan = training_plan(np.arange(3), np.full((3, 2), 9, np.int32), augmentation=augmentation(), seed=0, epoch=0)
    params = plan.params
    assert params["jitter"].tolist() == [[1, 1, 1, 0]] * 3 and params["jitter_orders"].tolist() == [[0, 1, 2, 3]] * 3
    assert params["operations"].shape == params["operation_values"].shape == (3, 0)
    assert not params["erased_boxes"].any() and not params["mix_boxes"].any()
    assert not params["partners"].any() and (params["mix_weights"] == 1).all()


def test_copies_differ_in_everything_that_is_drawn():
    options, stored = everything(2), np.full((1, 2), 300, np.int32)
    plan = training_plan(
        np.zeros(64, int), stored, augmentation=options, seed=0, epoch=0, view=np.arange(64), positions=np.arange(64)
    )
    for name in ("boxes", "pca_alphas", "jitter", "operations", "erased_boxes", "noise_offsets"):
        assert len(np.unique(arrays(plan)[name], axis=0)) > 50, name
    assert 10 < plan.flips.sum() < 54


def test_mixing_is_keyed_by_position_and_the_rest_by_sample():
    """The same two samples at two positions in the epoch."""
    stored = np.full((9, 2), 300, np.int32)
    plan = partial(training_plan, np.array([4, 7]), stored, augmentation=everything(2), seed=0, epoch=0)
    one, other = (plan(positions=np.array(positions)) for positions in ([2, 3], [10, 11]))
    for name, values in arrays(one).items():
        assert np.array_equal(values, arrays(other)[name]) is (name not in ("mix_weights", "mix_boxes")), name

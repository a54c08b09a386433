"""RandAugment's draws against the tables and formulas of timm and torchvision."""

import math

import numpy as np
import pytest
from scipy import stats
from timm.data import auto_augment
from torchvision.transforms import RandAugment as TorchvisionRandAugment

from tencrop.config import Augmentation, Pca, RandAugment
from tencrop.data.augmentation.operations import Operation as Op
from tencrop.data.augmentation.randaugment import (
    TF,
    TIMM,
    TORCHVISION,
    RandomOperations,
    randaugment_plan,
    tf_values,
    timm_values,
    torchvision_values,
)
from tencrop.data.augmentation.transform import Samples

KEY = {"seed": 0, "index": np.arange(6000), "epoch": 0}
NAMES = {
    "AutoContrast": Op.AUTOCONTRAST, "Equalize": Op.EQUALIZE, "Invert": Op.INVERT, "Rotate": Op.ROTATE,
    "PosterizeIncreasing": Op.POSTERIZE, "SolarizeIncreasing": Op.SOLARIZE, "SolarizeAdd": Op.SOLARIZE_ADD,
    "ColorIncreasing": Op.COLOR, "ContrastIncreasing": Op.CONTRAST, "BrightnessIncreasing": Op.BRIGHTNESS,
    "SharpnessIncreasing": Op.SHARPNESS, "ShearX": Op.SHEAR_X, "ShearY": Op.SHEAR_Y,
    "TranslateXRel": Op.TRANSLATE_X, "TranslateYRel": Op.TRANSLATE_Y, "Identity": Op.IDENTITY,
    "TranslateX": Op.TRANSLATE_X, "TranslateY": Op.TRANSLATE_Y, "Brightness": Op.BRIGHTNESS, "Color": Op.COLOR,
    "Contrast": Op.CONTRAST, "Sharpness": Op.SHARPNESS, "Posterize": Op.POSTERIZE, "Solarize": Op.SOLARIZE,
}  # fmt: skip


def test_the_lists_are_timms_and_torchvisions():
    assert [NAMES[name] for name in auto_augment._RAND_INCREASING_TRANSFORMS] == list(TIMM)
    space = TorchvisionRandAugment()._augmentation_space(31, (224, 224))
    assert [NAMES[name] for name in space] == list(TORCHVISION)


@pytest.mark.parametrize("level", [0.0, 0.37, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_timms_values(monkeypatch, level, sign):
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    values = timm_values(np.array([[level]]), np.array([[sign]]), size=200)
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        if (function := auto_augment.LEVEL_TO_ARG[name]) is not None:
            (expected,) = function(10 * level, {})
            expected *= 200 if name.startswith("Translate") else 1
            assert values[NAMES[name]].item() == pytest.approx(expected), name


@pytest.mark.parametrize("bin", [0, 9, 13, 30])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_torchvisions_values(bin, sign):
    values = torchvision_values(np.array([[bin / 30]]), np.array([[sign]]), size=224)
    for name, (magnitudes, is_signed) in TorchvisionRandAugment()._augmentation_space(31, (224, 224)).items():
        if magnitudes.ndim == 0:
            continue
        expected = float(magnitudes[bin]) * (sign if is_signed else 1)
        if name.startswith("Translate"):
            expected = -int(expected)  # affine moves the picture, the value says where it is read
        elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
            expected += 1
        assert values[NAMES[name]].item() == pytest.approx(expected, rel=1e-6, abs=1e-6), name


def test_tensorflows_values():
    """level_to_arg of its autoaugment.py at magnitude 10, big_vision's, and at 2.5; sizes do not follow the image's."""
    one = {op: value.item() for op, value in tf_values(np.array([[1.0]]), np.array([[-1.0]]), size=384).items()}
    assert one == pytest.approx(
        {
            Op.SHEAR_X: -0.3, Op.SHEAR_Y: -0.3, Op.TRANSLATE_X: -100, Op.TRANSLATE_Y: -100, Op.ROTATE: -30,
            Op.BRIGHTNESS: 1.9, Op.COLOR: 1.9, Op.CONTRAST: 1.9, Op.SHARPNESS: 1.9,
            Op.POSTERIZE: 4, Op.SOLARIZE: 0, Op.SOLARIZE_ADD: 110, Op.CUTOUT: 40,
        }
    )  # fmt: skip
    low = tf_values(np.array([[0.24]]), np.array([[1.0]]), size=64)
    assert [low[op].item() for op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD, Op.CUTOUT)] == [1, 61, 26, 9]
    assert low[Op.BRIGHTNESS].item() == pytest.approx(0.532) and low[Op.TRANSLATE_X].item() == 24


def test_squares_are_cut_out_anywhere():
    """One center for each operation, uniform over the image; the other sources draw none, so their digest stays."""
    samples = Samples(np.arange(6000), 0, 0, 0, None)

    def drawn(source):
        options = Augmentation("none", 48, "bilinear", 0.0, Pca(0.0, "torch"), randaugment=RandAugment(source, 2))
        return RandomOperations.draw(samples, options)

    centers = drawn("tf")["cutout_centers"]
    assert centers.shape == (6000, 2, 2) and "cutout_centers" not in drawn("timm")
    for column in centers.reshape(6000, 4).T:
        assert stats.chisquare(np.bincount(column, minlength=48)).pvalue > 0.001
    assert (centers[:, 0] == centers[:, 1]).all(axis=1).mean() < 0.01


@pytest.mark.parametrize(("source", "names"), [("timm", TIMM), ("torchvision", TORCHVISION), ("tf", TF)])
def test_operations_are_equally_likely_with_replacement(source, names):
    drawn = randaugment_plan(KEY, RandAugment(source, num_ops=2), size=224).operations
    for column in drawn.T:
        assert stats.chisquare([(column == name).sum() for name in names]).pvalue > 0.01
    assert abs((drawn[:, 0] == drawn[:, 1]).mean() - 1 / len(names)) < 4 * math.sqrt(1 / len(names) / 6000)


def test_share_of_operations_that_are_applied():
    drawn = randaugment_plan(KEY, RandAugment("timm", num_ops=2, prob=0.5), size=224)
    share = (drawn.operations != Op.IDENTITY).mean(axis=0)
    assert np.abs(share - 0.5).max() < 4 * math.sqrt(0.25 / 6000)
    assert not drawn.values[drawn.operations == Op.IDENTITY].any()


def test_levels_are_normal_and_clipped():
    """Read back from the rotations' angles: 30 degrees are level 10."""
    drawn = randaugment_plan(KEY, RandAugment("timm", num_ops=4, magnitude=9, std=0.5), size=224)
    levels = np.abs(drawn.values[drawn.operations == Op.ROTATE]) / 3
    below = levels[levels < 10]
    assert len(levels) > 1000 and stats.kstest(below, stats.truncnorm(-np.inf, 2, 9, 0.5).cdf).pvalue > 0.01
    assert abs((levels == 10).mean() - stats.norm.sf(2)) < 4 * math.sqrt(0.023 / len(levels))
    signs = np.sign(drawn.values[drawn.operations == Op.ROTATE])
    assert abs(signs.mean()) < 4 / math.sqrt(len(signs))


@pytest.mark.parametrize("source", ["timm", "torchvision", "tf"])
def test_a_samples_operations_do_not_depend_on_its_batch(source):
    options = RandAugment(source, num_ops=2, std=0.5, prob=0.8)
    whole = randaugment_plan(KEY, options, size=56)
    for part in (np.arange(3), np.arange(100, 50, -7)):
        for mine, its in zip(randaugment_plan(KEY | {"index": part}, options, size=56), whole, strict=True):
            assert np.array_equal(mine, its[part])


def test_epochs_differ():
    one, other = (
        randaugment_plan(KEY | {"epoch": epoch}, RandAugment(num_ops=2), size=56).operations for epoch in (0, 1)
    )
    assert abs((one == other).mean() - 1 / 14) < 0.02

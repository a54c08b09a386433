"""Each operation against Pillow's, by timm's and torchvision's own functions, one image at a time."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import auto_augment as timm
from torchvision.transforms import InterpolationMode

from tencrop.data.augmentation.operations import Operation, apply_operations, histograms

FILL = (124, 116, 104)
VALUES = {
    Operation.IDENTITY: [0.0],
    Operation.SHEAR_X: [-0.3, 0.27],
    Operation.SHEAR_Y: [-0.21, 0.3],
    Operation.TRANSLATE_X: [-17.3, 9.0],
    Operation.TRANSLATE_Y: [-4.0, 11.6],
    Operation.ROTATE: [-30.0, 3.7],
    Operation.BRIGHTNESS: [0.1, 0.6, 1.9],
    Operation.COLOR: [0.1, 0.6, 1.9],
    Operation.CONTRAST: [0.1, 0.6, 1.9],
    Operation.SHARPNESS: [0.1, 0.6, 1.9],
    Operation.POSTERIZE: [1.0, 4.0, 8.0],
    Operation.SOLARIZE: [0.0, 26.0, 178.5, 256.0],
    Operation.SOLARIZE_ADD: [0.0, 99.0, 110.0],
    Operation.AUTOCONTRAST: [0.0],
    Operation.EQUALIZE: [0.0],
    Operation.INVERT: [0.0],
}
MOTIONS: dict[Operation, Callable[..., Image.Image]] = {
    Operation.SHEAR_X: timm.shear_x,
    Operation.SHEAR_Y: timm.shear_y,
    Operation.TRANSLATE_X: timm.translate_x_abs,
    Operation.TRANSLATE_Y: timm.translate_y_abs,
    Operation.ROTATE: timm.rotate,
}
COLORS: dict[Operation, Callable[[Image.Image, float], Image.Image]] = {
    Operation.IDENTITY: lambda image, _: image,
    Operation.BRIGHTNESS: timm.brightness,
    Operation.COLOR: timm.color,
    Operation.CONTRAST: timm.contrast,
    Operation.SHARPNESS: timm.sharpness,
    Operation.POSTERIZE: lambda image, bits: timm.posterize(image, int(bits)),
    Operation.SOLARIZE: lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)),
    Operation.SOLARIZE_ADD: lambda image, add: timm.solarize_add(image, int(add)),
    Operation.AUTOCONTRAST: lambda image, _: ImageOps.autocontrast(image),
    Operation.EQUALIZE: lambda image, _: ImageOps.equalize(image),
    Operation.INVERT: lambda image, _: ImageOps.invert(image),
}


def one(image: np.ndarray, operation: Operation, value: float, filter: str = "nearest") -> np.ndarray:
    """Apply to the middle one of three images; the other two must not change."""
    images = torch.from_numpy(np.stack([image[::-1], image, image[:, ::-1]]).copy())
    operations, values = np.array([[0], [operation], [0]]), np.array([[0.0], [value], [0.0]], np.float32)
    result = apply_operations(images, operations, values, filter=filter, fill=torch.tensor(FILL))
    assert torch.equal(result[0], images[0]) and torch.equal(result[2], images[2])
    assert result.dtype == torch.uint8
    return result[1].numpy()


def kinds_of_images(photographs) -> list[np.ndarray]:
    """Photographs, and edge cases of histograms: noise, a uniform image, a narrow range, two levels."""
    generator = np.random.default_rng(0)
    noise = generator.integers(256, size=(37, 41, 3)).astype(np.uint8)
    flat = np.full((20, 20, 3), 77, np.uint8)
    narrow = generator.integers(100, 140, size=(30, 31, 3)).astype(np.uint8)
    two = np.where(noise < 128, 3, 250).astype(np.uint8)
    return [*(np.asarray(image.resize((96, 64))) for image in photographs.values()), noise, flat, narrow, two]


def test_every_operation_is_tested():
    assert set(VALUES) == set(Operation) - {Operation.CUTOUT} == set(MOTIONS) | set(COLORS)


@pytest.mark.parametrize("operation", list(COLORS))
def test_color_operations_equal_pillows_to_the_gray_level(photographs, operation):
    for image in kinds_of_images(photographs):
        for value in VALUES[operation]:
            expected = np.asarray(COLORS[operation](Image.fromarray(image), value))
            assert np.array_equal(one(image, operation, value), expected), value


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR, Operation.SHARPNESS]),
    st.floats(0.125, 1.875, width=32),
)
def test_enhancements_equal_pillows_for_any_factor(seed, operation, factor):
    image = np.random.default_rng(seed).integers(256, size=(9, 11, 3)).astype(np.uint8)
    assert np.array_equal(one(image, operation, factor), np.asarray(COLORS[operation](Image.fromarray(image), factor)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.sampled_from([13, 14]))
def test_autocontrast_and_equalize_equal_pillows_for_any_range(seed, low, high, operation):
    low, high = sorted((low, high))
    image = np.random.default_rng(seed).integers(low, high + 1, size=(17, 19, 3)).astype(np.uint8)
    expected = np.asarray(COLORS[Operation(operation)](Image.fromarray(image), 0))
    assert np.array_equal(one(image, Operation(operation), 0.0), expected)


@pytest.mark.parametrize("filter", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("operation", list(MOTIONS))
def test_geometric_operations_equal_pillows(photographs, filter, operation):
    """Pillow computes places in double precision (nearest: in 1/65536 pixels), here it is single: where a level lies
    between two the one or the other is cut off to, and where a place lies between two pixels either is taken."""
    resample = Image.Resampling[filter.upper()]
    for image in kinds_of_images(photographs):
        for value in VALUES[operation]:
            pillow = MOTIONS[operation](Image.fromarray(image), value, fillcolor=FILL, resample=resample)
            difference = np.abs(np.asarray(pillow).astype(int) - one(image, operation, value, filter))
            is_other = difference > (0 if filter == "nearest" else 1)
            assert is_other.any(axis=2).mean() < 0.002, (value, difference.max())
            assert (difference > 0).mean() < (
                0.1 if filter == "bilinear" else 0.01
            )  # whole levels, at tenths of a pixel


def test_geometric_operations_equal_torchvisions(photographs):
    """Against torchvision 0.29 on Pillow images, with RandAugment's largest values; nearest, black fill."""
    image = np.asarray(photographs["china"].resize((96, 64)))
    pillow = Image.fromarray(image)
    affine = {"angle": 0.0, "scale": 1.0, "interpolation": InterpolationMode.NEAREST, "fill": FILL}
    degrees = float(np.degrees(np.arctan(0.3)))
    expected = {
        (Operation.SHEAR_X, 0.3): F.affine(pillow, translate=[0, 0], shear=[degrees, 0.0], center=[0, 0], **affine),
        (Operation.SHEAR_Y, 0.3): F.affine(pillow, translate=[0, 0], shear=[0.0, degrees], center=[0, 0], **affine),
        (Operation.TRANSLATE_X, -13.0): F.affine(pillow, translate=[13, 0], shear=[0.0, 0.0], **affine),
        (Operation.TRANSLATE_Y, 13.0): F.affine(pillow, translate=[0, -13], shear=[0.0, 0.0], **affine),
        (Operation.ROTATE, 30.0): F.rotate(pillow, 30.0, interpolation=InterpolationMode.NEAREST, fill=FILL),
    }
    for (operation, value), other in expected.items():
        assert (one(image, operation, value) != np.asarray(other)).any(axis=2).mean() < 0.002, operation


def test_posterize_to_no_bits_is_black():
    """As in Pillow before it refused zero bits."""
    assert not one(np.full((5, 5, 3), 200, np.uint8), Operation.POSTERIZE, 0.0).any()


def test_operations_are_applied_in_order(photographs):
    image = np.asarray(photographs["flower"].resize((50, 40)))
    images = torch.from_numpy(np.stack([image, image]))
    operations = np.array([[Operation.INVERT, Operation.SOLARIZE], [Operation.SOLARIZE, Operation.COLOR]])
    values = np.array([[0.0, 100.0], [100.0, 0.5]], np.float32)
    result = apply_operations(images, operations, values, filter="nearest", fill=torch.zeros(3))
    pillow = Image.fromarray(image)
    assert np.array_equal(result[0], np.asarray(ImageOps.solarize(ImageOps.invert(pillow), 100)))
    assert np.array_equal(result[1], np.asarray(timm.color(ImageOps.solarize(pillow, 100), 0.5)))


def test_no_operations_no_change():
    images = torch.randint(256, (2, 5, 6, 3), dtype=torch.uint8)
    none = np.zeros((2, 0), np.int64)
    assert torch.equal(
        apply_operations(images, none, none.astype(np.float32), filter="nearest", fill=torch.zeros(3)), images
    )


def test_histograms_are_pillows(photographs):
    image = photographs["china"].resize((60, 50))
    counts = histograms(torch.from_numpy(np.array(image))[None])
    assert counts.flatten().tolist() == image.histogram()

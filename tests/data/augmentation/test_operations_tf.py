"""Each operation against its definition in TensorFlow's autoaugment.py, written in NumPy pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tencrop.data.augmentation.operations import Operation as Op
from tencrop.data.augmentation.operations_tf import apply_operations_tf
from tencrop.data.augmentation.randaugment import TF

CENTER = (5, 30)
F32 = np.float32
VALUES = {
    Op.AUTOCONTRAST: [0.0],
    Op.EQUALIZE: [0.0],
    Op.INVERT: [0.0],
    Op.ROTATE: [-30.0, 3.7, 30.0],
    Op.POSTERIZE: [1.0, 4.0],
    Op.SOLARIZE: [0.0, 26.0, 230.0],
    Op.COLOR: [0.1, 1.0, 1.9],
    Op.CONTRAST: [0.1, 1.0, 1.9],
    Op.BRIGHTNESS: [0.1, 1.9],
    Op.SHARPNESS: [0.1, 1.9],
    Op.SHEAR_X: [-0.3, 0.3],
    Op.SHEAR_Y: [-0.3, 0.21],
    Op.TRANSLATE_X: [-20.5, 20.0, 100.0],
    Op.TRANSLATE_Y: [-7.0, 7.5],
    Op.CUTOUT: [0.0, 12.0, 40.0],
    Op.SOLARIZE_ADD: [0.0, 110.0],
}


def ours(image: np.ndarray, operation: Op, value: float) -> np.ndarray:
    """Apply to the middle one of three images; the other two must not change."""
    images = torch.from_numpy(np.stack([image[::-1], image, image[:, ::-1]]).copy())
    operations, values = np.array([[0], [operation], [0]]), np.array([[0.0], [value], [0.0]], np.float32)
    result = apply_operations_tf(images, operations, values, np.array([[[0, 0]], [CENTER], [[0, 0]]]))
    assert torch.equal(result[0], images[0]) and torch.equal(result[2], images[2])
    assert result.dtype == torch.uint8
    return result[1].numpy()


def blended(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    degenerate, image = degenerate.astype(F32), image.astype(F32)
    return np.clip(degenerate + F32(factor) * (image - degenerate), 0, 255).astype(np.uint8)


def transformed(image: np.ndarray, matrix: list[float]) -> np.ndarray:
    """tf.contrib.image.transform: output (x, y) is read at the nearest pixel of (a x + b y + c, d x + e y + f)."""
    a, b, c, d, e, f = map(F32, matrix)
    result = np.full_like(image, 128)
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            place = [a * F32(x) + b * F32(y) + c, d * F32(x) + e * F32(y) + f]
            column, row = (int(math.copysign(math.floor(abs(float(at)) + 0.5), at)) for at in place)
            if 0 <= row < height and 0 <= column < width:
                result[y, x] = image[row, column]
    return result


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """angles_to_projective_transforms of tf.contrib.image."""
    height, width, _ = image.shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = ((width - 1) - (cosine * (width - 1) - sine * (height - 1))) / 2
    y = ((height - 1) - (sine * (width - 1) + cosine * (height - 1))) / 2
    return transformed(image, [cosine, -sine, x, sine, cosine, y])


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    gray = image.astype(int).sum(axis=2) // 3  # any gray image: only its number of pixels counts
    histogram = np.histogram(gray, bins=256, range=(0, 255))[0]
    mean = np.clip(histogram.sum() / 256, 0, 255).astype(np.uint8)
    return blended(np.full_like(image, mean), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    degenerate, kernel = image.copy(), np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], F32) / F32(13)
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            total = np.zeros(3, F32)
            for row in range(3):
                for column in range(3):
                    total = total + kernel[row, column] * image[y + row - 1, x + column - 1].astype(F32)
            degenerate[y, x] = np.clip(total, 0, 255).astype(np.uint8)
    return blended(degenerate, image, factor)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    gray = (image.astype(F32) * F32(1 / 255)) @ np.array([0.2989, 0.5870, 0.1140], F32)
    return blended(np.repeat((gray * F32(255.5)).astype(np.uint8)[..., None], 3, axis=2), image, factor)


def autocontrast(image: np.ndarray, _: float) -> np.ndarray:
    low, high = (image.min(axis=(0, 1)).astype(F32), image.max(axis=(0, 1)).astype(F32))
    scale = F32(255) / np.where(high > low, high - low, F32(1))
    stretched = np.clip(image.astype(F32) * scale + -low * scale, 0, 255).astype(np.uint8)
    return np.where(high > low, stretched, image)


def cutout(image: np.ndarray, pad: float) -> np.ndarray:
    result = image.copy()
    (row, column), pad = CENTER, int(pad)
    result[max(0, row - pad) : row + pad, max(0, column - pad) : column + pad] = 128
    return result


def solarize_add(image: np.ndarray, addition: float) -> np.ndarray:
    return np.where(image < 128, np.clip(image.astype(int) + int(addition), 0, 255), image).astype(np.uint8)


REFERENCE = {
    Op.AUTOCONTRAST: autocontrast,
    Op.EQUALIZE: lambda image, _: np.asarray(ImageOps.equalize(Image.fromarray(image))),
    Op.INVERT: lambda image, _: 255 - image,
    Op.ROTATE: rotated,
    Op.POSTERIZE: lambda image, bits: image >> (8 - int(bits)) << (8 - int(bits)),
    Op.SOLARIZE: lambda image, threshold: np.where(image < threshold, image, 255 - image),
    Op.COLOR: color,
    Op.CONTRAST: contrast,
    Op.BRIGHTNESS: lambda image, factor: blended(np.zeros_like(image), image, factor),
    Op.SHARPNESS: sharpness,
    Op.SHEAR_X: lambda image, level: transformed(image, [1, level, 0, 0, 1, 0]),
    Op.SHEAR_Y: lambda image, level: transformed(image, [1, 0, 0, level, 1, 0]),
    Op.TRANSLATE_X: lambda image, pixels: transformed(image, [1, 0, pixels, 0, 1, 0]),
    Op.TRANSLATE_Y: lambda image, pixels: transformed(image, [1, 0, 0, 0, 1, pixels]),
    Op.CUTOUT: cutout,
    Op.SOLARIZE_ADD: solarize_add,
}


def images() -> list[np.ndarray]:
    """Noise, a narrow range, and a smooth image whose means are often whole numbers."""
    generator = np.random.default_rng(0)
    noise = generator.integers(256, size=(37, 64, 3)).astype(np.uint8)
    narrow = generator.integers(100, 140, size=(41, 32, 3)).astype(np.uint8)
    ramp = np.add.outer(np.arange(40), 3 * np.arange(48))[..., None] + [0, 20, 40]
    return [noise, narrow, ramp.astype(np.uint8)]


def test_every_operation_is_tested():
    assert len(TF) == 16 and set(TF) == set(VALUES) == set(REFERENCE)


@pytest.mark.parametrize("operation", TF)
def test_operations_equal_tensorflows_definition(operation):
    for image in images():
        for value in VALUES[operation]:
            found, expected = ours(image, operation, value), REFERENCE[operation](image, value)
            # The gray level is a matrix product, whose order of addition is not defined; the angle's sine is in float32
            # here. Where that decides a truncation, the pixel is another one.
            share = 0.003 if operation in (Op.COLOR, Op.ROTATE) else 0
            assert (found != expected).any(axis=2).mean() <= share, value


def test_contrast_is_with_the_number_of_pixels_over_256():
    """224 x 224 pixels: 196. Pillow's is the mean gray level of the image."""
    image = np.full((224, 224, 3), 50, np.uint8)
    assert (ours(image, Op.CONTRAST, 0.5) == 123).all()
    assert (ours(np.full((384, 384, 3), 55, np.uint8), Op.CONTRAST, 0.5) == 155).all()  # at most 255

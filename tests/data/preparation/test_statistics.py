import numpy as np
import pytest
from PIL import Image

from tencrop.data.native.reduce import reduced_image
from tencrop.data.preparation.statistics import ColorSums


def add(sums: ColorSums, image: Image.Image, pixels: np.ndarray | None = None) -> None:
    sums.add(np.asarray(image) if pixels is None else pixels, image.height, image.width)


def reference_square(image: Image.Image) -> np.ndarray:
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square if side <= 256 else square.resize((256, 256), Image.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def images(photographs) -> list[Image.Image]:
    china, flower = photographs["china"], photographs["flower"]
    return [china, flower.resize((100, 71)), china.crop((3, 4, 103, 300)), flower.crop((0, 0, 256, 256))]


@pytest.fixture(scope="module")
def sums(images) -> ColorSums:
    sums = ColorSums()
    for image in images:
        add(sums, image)
    return sums


def test_against_a_plain_computation(images, sums):
    pixels = np.concatenate([reference_square(image).reshape(-1, 3) for image in images]).astype(np.float64)
    statistics = sums.statistics()
    assert statistics["num_images"] == 4
    assert statistics["num_pixels"] == len(pixels) == 2 * 256**2 + 71**2 + 100**2
    np.testing.assert_allclose(statistics["mean"], pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], pixels.std(axis=0), rtol=1e-10)
    np.testing.assert_allclose(statistics["covariance"], np.cov(pixels.T, bias=True), rtol=1e-9)


def test_axes_of_the_covariance(sums):
    statistics = sums.statistics()
    values, vectors = np.array(statistics["eigenvalues"]), np.array(statistics["eigenvectors"])
    assert (np.diff(values) <= 0).all()
    assert (values >= 0).all()
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, statistics["covariance"], rtol=1e-9)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def test_mean_image(images, sums):
    squares = []
    for image in images:
        side = min(image.size)
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        square = image.crop((left, top, left + side, top + side))
        squares.append(np.asarray(square.resize((256, 256), Image.Resampling.BILINEAR), dtype=np.float64))
    mean_image = sums.mean_image()
    assert mean_image.dtype == np.float32
    np.testing.assert_array_equal(mean_image, np.mean(squares, axis=0).astype(np.float32))


def test_order_does_not_matter(images, sums):
    backwards = ColorSums()
    for image in reversed(images):
        add(backwards, image)
    assert backwards.statistics() == sums.statistics()
    assert backwards.mean_image().tobytes() == sums.mean_image().tobytes()


def test_gray_images_have_one_axis():
    sums = ColorSums()
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(256, axis=0)
    add(sums, Image.fromarray(np.stack([ramp] * 3, axis=2)))
    statistics = sums.statistics()
    variance = (256**2 - 1) / 12
    np.testing.assert_allclose(statistics["eigenvalues"], [3 * variance, 0, 0], atol=1e-9)
    np.testing.assert_allclose(np.array(statistics["eigenvectors"])[:, 0], [3**-0.5] * 3)
    np.testing.assert_allclose(statistics["mean"], [127.5] * 3)


def test_merged_sums_are_those_of_all(images, sums):
    parts = [ColorSums(), ColorSums()]
    for number, image in enumerate(images):
        add(parts[number % 2], image)
    parts[0].merge(parts[1])
    assert parts[0].statistics() == sums.statistics()
    assert parts[0].mean_image().tobytes() == sums.mean_image().tobytes()


def test_statistics_at_reduced_size_are_close_to_those_at_full_size(photographs):
    """An image of 427 x 640 pixels is reduced to 214 x 320; bounds in gray levels of 255."""
    whole, reduced = ColorSums(), ColorSums()
    for image in photographs.values():
        add(whole, image)
        add(reduced, image, reduced_image(image))
    first, second = whole.statistics(), reduced.statistics()
    assert first["num_pixels"] == second["num_pixels"] == 2 * 256**2
    np.testing.assert_allclose(first["mean"], second["mean"], atol=0.2)
    np.testing.assert_allclose(first["std"], second["std"], rtol=0.03)
    # detail of single images differs and edges move by up to a pixel, which the mean of many does not show
    blocks = [sums.mean_image()[8:-8, 8:-8].reshape(30, 8, 30, 8, 3).mean(axis=(1, 3)) for sums in (whole, reduced)]
    assert np.abs(blocks[0] - blocks[1]).mean() < 1

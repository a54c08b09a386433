"""Random erasing against the paper's algorithm in plain Python, and its noise against the table."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tencrop.config import Erasing
from tencrop.data.augmentation.erasing import NUM_OFFSETS, erase, erasing_boxes, noise_offsets, noise_table
from tencrop.data.sampling.rng import Stream, random_uint64

SIZE = 224
KEY = {"seed": 0, "index": np.arange(4000), "epoch": 0}


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return noise_table(seed=3, size=10)


def scalar_box(draw: list[int], erasing: Erasing, size: int) -> list[int]:
    """timm's RandomErasing._erase for one image, in Python numbers."""
    unit = [(value >> 11) / 2**53 for value in draw]
    if unit[0] >= erasing.prob:
        return [0, 0, 0, 0]
    for attempt in range(10):
        share, ratio = unit[1 + 4 * attempt : 3 + 4 * attempt]
        top, left = draw[3 + 4 * attempt : 5 + 4 * attempt]
        target = (erasing.area[0] + (erasing.area[1] - erasing.area[0]) * share) * size * size
        low, high = math.log(erasing.aspect[0]), math.log(erasing.aspect[1])
        aspect = math.exp(low + (high - low) * ratio)
        h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if w < size and h < size:
            return [top * (size - h + 1) >> 64, left * (size - w + 1) >> 64, h, w]
    return [0, 0, 0, 0]


@pytest.mark.parametrize(
    "erasing", [Erasing(0.25), Erasing(1.0, [0.3, 0.9], [0.1, 10.0]), Erasing(1.0, [0.9, 0.99], [0.01, 100.0])]
)
def test_boxes_are_timms_algorithm(erasing):
    index = np.arange(300)
    boxes = erasing_boxes({**KEY, "index": index}, erasing, size=SIZE)
    draw = random_uint64(seed=0, index=index, epoch=0, stream=Stream.ERASE, count=41).tolist()
    assert boxes.tolist() == [scalar_box(row, erasing, SIZE) for row in draw]


def test_distributions_of_the_paper():
    """Area uniform over [0.02, 1/3], log-uniform aspect, uniform position, a quarter of the images."""
    boxes = erasing_boxes(KEY, Erasing(0.25), size=SIZE)
    erased = boxes[boxes[:, 2] > 0]
    assert abs(len(erased) / 4000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    top, left, height, width = erased.T
    assert stats.kstest(height * width / SIZE**2, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 0.01
    ratio = np.log(height / width)
    assert stats.kstest(ratio, stats.uniform(math.log(0.3), 2 * math.log(1 / 0.3)).cdf).pvalue > 0.01
    for start, length in ((top, height), (left, width)):
        assert stats.kstest((start + 0.5) / (SIZE - length + 1), "uniform").pvalue > 0.01


def test_the_table_is_normal(noise):
    assert len(noise) >= NUM_OFFSETS + 300 and noise.dtype == torch.float32
    assert stats.kstest(noise[:20_000].numpy(), "norm").pvalue > 0.01
    assert abs(noise.mean()) < 4 / math.sqrt(len(noise))
    assert not torch.equal(noise, noise_table(seed=4, size=10))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_erasing_pixel_by_pixel(noise, layout):
    boxes = np.array([[2, 3, 4, 5], [0, 0, 0, 0], [0, 0, 8, 7], [7, 9, 1, 1]])
    offsets = np.array([0, 77, NUM_OFFSETS - 1, 12345])
    inputs = torch.randn(4, 3, 8, 10).to(memory_format=layout)
    expected = inputs.clone()
    for image, (top, left, height, width), offset in zip(expected, boxes.tolist(), offsets.tolist(), strict=True):
        for y in range(top, top + height):
            for x in range(left, left + width):
                for channel in range(3):
                    image[channel, y, x] = noise[offset + 3 * (width * (y - top) + x - left) + channel]
    assert torch.equal(erase(inputs, boxes, offsets, noise=noise), expected)
    flat = erase(inputs, boxes, offsets, noise=None)
    assert torch.equal(flat[1], inputs[1]) and (flat[0, :, 2:6, 3:8] == 0).all()
    assert torch.equal(flat == inputs, expected == inputs)


def test_noise_offsets_are_uniform_and_independent_of_the_batch():
    offsets = noise_offsets(KEY)
    assert stats.kstest(offsets / NUM_OFFSETS, "uniform").pvalue > 0.01
    assert np.array_equal(noise_offsets({**KEY, "index": np.array([7, 3])}), offsets[[7, 3]])

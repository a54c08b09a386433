"""Color jitter against fb.resnet.torch step by step, torchvision's functions, and Pillow's."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageEnhance
from scipy import stats

from tencrop.config import Augmentation, Jitter, Pca
from tencrop.data.augmentation.color import ColorJitter, apply_jitter, jitter_factors, jitter_orders

FULL = {
    "torch": Jitter("torch", 0.4, 0.4, 0.4),
    "torchvision": Jitter("torchvision", 0.4, 0.4, 0.4, 0.2),
}
KEY = {"seed": 0, "index": np.arange(4000), "epoch": 0}


@pytest.fixture(scope="module")
def images(photographs) -> torch.Tensor:
    """uint8 [24, 40, 60, 3]"""
    parts = [np.asarray(image.resize((60, 40))) for image in photographs.values()]
    return torch.from_numpy(np.stack(parts * 12))


def drawn(**options) -> tuple[torch.Tensor, np.ndarray]:
    key = {"seed": 1, "index": np.arange(24), "epoch": 0}
    return torch.from_numpy(jitter_factors(key, Jitter(**options))), jitter_orders(key)


def blend(image, other, factor):
    return factor * image + (1 - factor) * other


def torch_step(image: np.ndarray, step: int, factor: float) -> np.ndarray:
    """One transform of fb.resnet.torch, datasets/transforms.lua, on [H, W, 3]."""
    gray = image @ np.array([0.299, 0.587, 0.114])
    targets = [np.zeros_like(image), np.full_like(image, gray.mean()), np.repeat(gray[..., None], 3, axis=2)]
    return blend(image, targets[step], factor)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_fb_resnet_torch_jitter_in_any_order(images, order):
    """Its random order makes no difference, because nothing is clipped in between."""
    factors, orders = drawn(brightness=0.4, contrast=0.4, saturation=0.4)
    ours = apply_jitter(images, factors, orders, FULL["torch"], dtype=torch.float64)
    for image, result, factor in zip(images.double().numpy(), ours.numpy(), factors.numpy(), strict=True):
        for step in order:
            image = torch_step(image, step, factor[step])
        np.testing.assert_allclose(result, image, rtol=1e-9, atol=1e-9)
    assert ours.max() > 255


def test_torchvision_jitter_equals_its_functions_on_single_images(images):
    factors, orders = drawn(source="torchvision", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    ours = apply_jitter(images, factors, orders, FULL["torchvision"], dtype=torch.float32)
    functions = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for image, result, factor, order in zip(images, ours, factors.tolist(), orders.tolist(), strict=True):
        expected = image.permute(2, 0, 1).float() / 255
        for step in order:
            expected = functions[step](expected, factor[step])
        torch.testing.assert_close(
            result, 255 * expected.permute(1, 2, 0), rtol=0, atol=0.05
        )  # its weight of red is 0.2989
    assert len(set(map(tuple, orders.tolist()))) > 10


@pytest.mark.parametrize(
    ("step", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
@pytest.mark.parametrize("factor", [0.6, 1.37])
def test_pillows_enhancements_to_one_gray_level(images, step, enhance, factor):
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)
    factors[:, step] = factor
    orders = np.tile(np.arange(4), (2, 1))
    ours = apply_jitter(images[:2], factors, orders, FULL["torchvision"], dtype=torch.float32)
    for image, result in zip(images[:2].numpy(), ours.numpy(), strict=True):
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor)).astype(np.float32)
        assert np.abs(result - expected).max() <= 1.0 + abs(factor - 1) / 2  # Pillow rounds, the mean gray as well


def test_a_hue_shift_by_a_full_circle_changes_nothing(images):
    orders = np.tile(np.arange(4), (24, 1))
    once = apply_jitter(images, torch.tensor([[1.0, 1, 1, 1]] * 24), orders, FULL["torchvision"], dtype=torch.float64)
    torch.testing.assert_close(once, images.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", ["torch", "torchvision"])
def test_factors_of_1_change_nothing(images, source):
    factors, orders = drawn(source=source)
    assert factors.tolist() == [[1, 1, 1, 0]] * 24
    off = Augmentation("none", 60, "bilinear", 0.0, Pca(0.0, "dataset"), jitter=Jitter(source=source))
    assert not ColorJitter.is_on(off)
    same = apply_jitter(images, factors, orders, FULL[source], dtype=torch.float64)
    torch.testing.assert_close(same, images.double(), rtol=0, atol=1e-9)


def test_factors_are_uniform_and_independent():
    jitter = Jitter(source="torchvision", brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    factors = jitter_factors(KEY, jitter)
    for values, center, spread in zip(factors.T, (1, 1, 1, 0), (0.4, 0.3, 0.2, 0.1), strict=True):
        assert stats.kstest(values, stats.uniform(center - spread, 2 * spread).cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 4 / np.sqrt(4000)


def test_all_orders_are_equally_likely():
    orders, counts = np.unique(jitter_orders(KEY), axis=0, return_counts=True)
    assert len(orders) == 24 and stats.chisquare(counts).pvalue > 0.01
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (24, 1)))

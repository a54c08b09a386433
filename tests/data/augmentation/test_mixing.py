"""Mixing against the papers' definitions and a slow loop over images, for any layout of the batch."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tencrop.config import Mixing
from tencrop.data.augmentation.mixing import mix, mixing_plan, partner_rows

SIZE = 224


def plan(positions, **options):
    mixing = Mixing(**{"mix_group": 4, **options})
    return mixing_plan(np.asarray(positions), mixing=mixing, size=SIZE, seed=0, epoch=0)


def firsts(num_groups: int) -> np.ndarray:
    """The position of the first sample of each group of 4."""
    return 4 * np.arange(num_groups)


def test_a_group_shares_one_lambda_and_pairs_its_ends():
    drawn = plan(np.arange(12), mixup_alpha=0.8)
    assert drawn.partners.tolist() == [3, 1, -1, -3] * 3
    assert np.array_equal(drawn.weights, np.repeat(drawn.weights[::4], 4)) and len(set(drawn.weights)) == 3


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.8, "prob": 0.5}])
def test_draws_do_not_depend_on_how_the_epoch_is_split(options):
    whole = plan(np.arange(64), **options)
    for part in (np.arange(4), np.arange(8, 24), np.arange(63, 39, -1)):
        for mine, its in zip(plan(part, **options), whole, strict=True):
            assert np.array_equal(mine, its[part])


def test_seeds_and_epochs_differ():
    mixing = Mixing(mixup_alpha=1.0, mix_group=4)
    one, other, later = (
        mixing_plan(firsts(8), mixing=mixing, size=SIZE, seed=seed, epoch=epoch).weights
        for seed, epoch in ((0, 0), (1, 0), (0, 1))
    )
    assert len({*one, *other, *later}) == 24


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
def test_mixup_lambda_is_beta_distributed(alpha):
    weights = plan(firsts(4000), mixup_alpha=alpha).weights
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert abs(weights.mean() - 0.5) < 4 * math.sqrt(1 / (4 * (2 * alpha + 1)) / 4000)


def test_mixup_pastes_nothing():
    assert not plan(firsts(100), mixup_alpha=1.0).boxes.any()


def test_cutmix_boxes_equal_the_authors_code():
    """rand_bbox of clovaai/CutMix-PyTorch, train.py, in Python numbers: alpha 1, so lambda is the quantile itself."""
    from tencrop.data.sampling.rng import Stream, random_uint64

    drawn = plan(firsts(200), cutmix_alpha=1.0)
    for number, (weight, box) in enumerate(zip(drawn.weights, drawn.boxes, strict=True)):
        draw = random_uint64(seed=0, index=np.array([number]), epoch=0, stream=Stream.MIX, count=5)[0].tolist()
        cut = int(SIZE * math.sqrt(1 - (draw[2] >> 11) / 2**53))
        edges = []
        for center in (draw[3] * SIZE >> 64, draw[4] * SIZE >> 64):
            edges.append((max(center - cut // 2, 0), min(center + cut // 2, SIZE)))
        (top, bottom), (left, right) = edges
        assert box.tolist() == [top, left, bottom - top, right - left]
        assert weight == 1 - (bottom - top) * (right - left) / SIZE**2


def test_cutmix_centers_are_uniform():
    """Measured on boxes that no edge clips: given their side, the center is uniform over the remaining range."""
    boxes = plan(firsts(4000), cutmix_alpha=1.0).boxes
    top, _, height, _ = boxes.T
    inner = (top > 0) & (top + height < SIZE) & (height > 0)
    relative = (top - 0.5)[inner] / (SIZE - height - 1)[inner]
    assert inner.sum() > 1000 and stats.kstest(relative, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("prob", "switch_prob"), [(1.0, 0.5), (0.3, 0.5), (0.8, 0.25)])
def test_how_often_a_group_is_mixed_and_how(prob, switch_prob):
    num_groups = 4000
    drawn = plan(firsts(num_groups), mixup_alpha=0.8, cutmix_alpha=1.0, prob=prob, switch_prob=switch_prob)
    is_cut = drawn.boxes[:, 2] > 0
    share_mixed, share_cut = (drawn.weights < 1).mean(), is_cut.mean()
    assert abs(share_mixed - prob) < 0.03 + 0.01 * prob  # a box may be empty: lambda above 0.9999
    assert abs(share_cut - prob * switch_prob) < 0.03
    kept = drawn.weights == 1
    assert not drawn.boxes[kept].any()


def test_if_only_one_kind_is_on_it_is_always_used():
    assert not plan(firsts(50), mixup_alpha=1.0, switch_prob=1.0).boxes.any()
    assert (plan(firsts(50), cutmix_alpha=1.0, switch_prob=0.0).boxes[:, 2] > 0).mean() > 0.9


def slow_mix(images: np.ndarray, partners, weights, boxes) -> np.ndarray:
    mixed = images.copy()
    for i in range(len(images)):
        partner = images[i + partners[i]]
        top, left, height, width = boxes[i]
        if height * width:
            mixed[i, :, top : top + height, left : left + width] = partner[:, top : top + height, left : left + width]
        else:
            mixed[i] = weights[i] * images[i] + (1 - weights[i]) * partner
    return mixed


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, {"prob": 0.5, "mixup_alpha": 1.0}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixing_equals_a_slow_loop(options, layout):
    mixing = Mixing(mix_group=5, **options)
    drawn = mixing_plan(np.arange(20), mixing=mixing, size=24, seed=3, epoch=1)
    images = torch.randn(20, 3, 24, 24, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    expected = slow_mix(images.numpy(), *drawn)
    mixed = mix(images, *(torch.from_numpy(array) for array in drawn))
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-6)
    kept = torch.from_numpy(drawn.weights == 1)
    assert torch.equal(mixed[kept], images[kept])  # every bit
    assert mixed.is_contiguous(memory_format=layout)


def test_a_pasted_pixel_equals_the_partners():
    """Also for numbers that a product with 0 would change: infinities and bits below the resolution of float32."""
    images = torch.tensor([1e30, 1e-30]).view(2, 1, 1, 1).expand(2, 3, 8, 8).contiguous()
    boxes = torch.tensor([[2, 3, 4, 2], [0, 0, 1, 1]], dtype=torch.int32)
    mixed = mix(images, torch.tensor([1, -1]), torch.tensor([0.875, 1 - 1 / 64]), boxes)
    assert (mixed[0, :, 2:6, 3:5] == images[1, 0, 0, 0]).all() and (mixed[0] == 1e30).sum() == 3 * 56
    assert (mixed[1, :, 0, 0] == 1e30).all() and (mixed[1] == images[1, 0, 0, 0]).sum() == 3 * 63


def test_partners_are_found_wherever_a_group_begins():
    drawn = plan(np.arange(8, 16), mixup_alpha=1.0)
    assert partner_rows(torch.from_numpy(drawn.partners)).tolist() == [3, 2, 1, 0, 7, 6, 5, 4]

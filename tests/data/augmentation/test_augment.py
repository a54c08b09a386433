"""Augmentation on the device, compared sample by sample with its steps in the documented order."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tencrop.config import Augmentation, Erasing, Jitter, Mixing, Pca, RandAugment
from tencrop.data.augmentation.augment import partner_labels, training_inputs
from tencrop.data.augmentation.batch import DEVICE_FIELDS, Batch
from tencrop.data.augmentation.color import ColorNoise, color_noise, normalize
from tencrop.data.augmentation.erasing import erase, noise_table
from tencrop.data.augmentation.jitter import apply_jitter
from tencrop.data.augmentation.operations import apply_operations
from tencrop.data.augmentation.plan import training_plan

MEAN, STD = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 61.0, 62.0])
PLAIN = Augmentation(
    crop="none", size=16, filter="bilinear", flip=0.0, pca=Pca(0.1, "torch"), jitter=Jitter(), mixing=Mixing()
)
NOISE = noise_table(seed=0, size=16)
FULL = dataclasses.replace(
    PLAIN,
    randaugment=RandAugment("timm", num_ops=2, std=0.5, prob=0.5, filter="bicubic"),
    jitter=Jitter("torch", 0.4, 0.4, 0.4),
    erasing=Erasing(0.5),
    mixing=Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mix_group=4),
)


def batch_for(augmentation: Augmentation, num_samples: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_samples, 16, 16, 3), dtype=torch.uint8, generator=generator)
    index = np.arange(num_samples)
    stored = np.full((num_samples, 2), 16, np.int32)
    plan = training_plan(index, stored, augmentation=augmentation, seed=0, epoch=0, positions=index)
    plan = plan._replace(
        pca_alphas=plan.pca_alphas.astype(np.float32), operation_values=plan.operation_values.astype(np.float32)
    )
    fields: dict[str, Any] = {
        n: torch.from_numpy(array) if n in DEVICE_FIELDS else array for n, array in plan._asdict().items()
    }
    return Batch(
        images=images, labels=torch.arange(num_samples) * 10, **fields, hashes=np.zeros((num_samples, 2), np.int64)
    )


def inputs(batch: Batch, augmentation: Augmentation, **options) -> torch.Tensor:
    noise = color_noise(augmentation.pca, {})
    return training_inputs(batch, augmentation, mean=MEAN, std=STD, noise=noise, erasing_noise=NOISE, **options)


@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_are_applied_in_the_documented_order(channels_last):
    batch = batch_for(FULL)
    axes = color_noise(FULL.pca, {}).axes
    alone = []
    for i in range(8):
        rows = slice(i, i + 1)
        fill = torch.tensor([120, 110, 100])
        operations, values = batch.operations[rows], batch.operation_values[rows]
        image = apply_operations(batch.images[rows], operations, values, filter="bicubic", fill=fill)
        pixels = apply_jitter(image, batch.jitter[rows], batch.jitter_orders[rows], FULL.jitter, dtype=torch.float32)
        normalized = normalize(pixels + batch.pca_alphas[i] @ axes.T, MEAN, STD)
        alone.append(erase(normalized, batch.erased_boxes[rows], batch.noise_offsets[rows], noise=NOISE)[0])
    result = inputs(batch, FULL, channels_last=channels_last)
    kinds = set()
    for i in range(8):
        own, other, weight = alone[i], alone[i + int(batch.partners[i])], batch.mix_weights[i].float()
        top, left, height, width = batch.mix_boxes[i].tolist()
        expected = own * weight + other * (1 - weight)
        if height:
            expected = own.clone()
            expected[:, top : top + height, left : left + width] = other[:, top : top + height, left : left + width]
        torch.testing.assert_close(result[i], expected, rtol=1e-4, atol=1e-4)
        kinds.add(height > 0)
    assert kinds == {False, True}
    assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_steps_that_are_off_change_no_bit():
    batch = batch_for(PLAIN)
    shift = batch.pca_alphas.float() @ color_noise(PLAIN.pca, {}).axes.T
    assert torch.equal(inputs(batch, PLAIN), normalize(batch.images, MEAN, STD, shift=shift))
    assert torch.equal(partner_labels(batch), batch.labels)


@pytest.mark.parametrize(("source", "around"), [("torchvision", 0), ("timm", (120, 110, 100))])
def test_fill_color_around_a_warped_image(source, around):
    augmentation = dataclasses.replace(PLAIN, pca=Pca(0.0, "torch"), randaugment=RandAugment(source, num_ops=1))
    batch = batch_for(augmentation, 1)
    moved = batch._replace(operations=np.array([[3]]), operation_values=np.array([[15.0]], np.float32))
    expected = (torch.tensor(around) - MEAN) / STD
    result = inputs(moved, augmentation)[0, :, :, 1:]
    torch.testing.assert_close(result, expected[:, None, None].expand(3, 16, 15), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["torch", "torchvision"])
def test_augmentation_reads_nothing_back_from_the_device(source):
    """A tensor on the meta device has no data, so reading a value fails."""
    augmentation = dataclasses.replace(FULL, jitter=dataclasses.replace(FULL.jitter, source=source))
    if source == "torchvision":
        augmentation.jitter.hue = 0.1
    batch = batch_for(augmentation)
    there = batch._replace(**{name: getattr(batch, name).to("meta") for name in ("images", *DEVICE_FIELDS)})
    noise = ColorNoise(torch.empty(3, 3, device="meta"), 1.0)
    mean, std, erasing_noise = (tensor.to("meta") for tensor in (MEAN, STD, NOISE))
    result = training_inputs(there, augmentation, mean=mean, std=std, noise=noise, erasing_noise=erasing_noise)
    assert result.is_meta and result.shape == (8, 3, 16, 16)
    assert partner_labels(there).is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        result.sum().item()


def test_partner_labels():
    assert partner_labels(batch_for(FULL)).tolist() == [30, 20, 10, 0, 70, 60, 50, 40]

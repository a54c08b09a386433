"""Augmentation on the device, compared sample by sample with its steps in the documented order."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from operations import Operations
from tencrop.config import Augmentation, Config, Erasing, Jitter, Mixing, Normalization, Pca, RandAugment
from tencrop.data.augmentation import pipeline
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import apply_jitter, color_noise, normalize
from tencrop.data.augmentation.erasing import erase, noise_table
from tencrop.data.augmentation.mixing import partner_labels
from tencrop.data.augmentation.operations import apply_operations
from tencrop.data.augmentation.pipeline import DEVICE_PARAMS, PIPELINE, build_transforms, draw_params
from tencrop.data.augmentation.plan import training_plan
from tencrop.data.augmentation.transform import Samples, Transform
from typed import stand_in

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
    params: dict[str, torch.Tensor | np.ndarray] = {
        name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in plan.params.items()
    }
    params |= {name: torch.from_numpy(np.asarray(params[name])) for name in params.keys() & DEVICE_PARAMS}
    labels, hashes = torch.arange(num_samples) * 10, np.zeros((num_samples, 2), np.int64)
    return Batch(images, labels, plan.index, plan.boxes, plan.flips, plan.sizes, params, hashes)


def transforms(augmentation: Augmentation, *, channels_last: bool = False) -> torch.nn.ModuleList:
    config = stand_in(
        Config,
        augmentation=augmentation,
        normalization=Normalization(MEAN.tolist(), STD.tolist()),
        model=SimpleNamespace(channels_last=channels_last),
        seed=0,
    )
    return build_transforms(config, {})


def inputs(batch: Batch, augmentation: Augmentation, **options) -> torch.Tensor:
    images = batch.images
    for transform in transforms(augmentation, **options):
        images = transform(images, batch.params)
    return images


@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_are_applied_in_the_documented_order(channels_last):
    batch = batch_for(FULL)
    axes = color_noise(FULL.pca, {}).axes
    alone = []
    for i in range(8):
        rows = slice(i, i + 1)
        fill = torch.tensor([120, 110, 100])
        params = {name: values[rows] for name, values in batch.params.items()}
        operations, values = params["operations"], params["operation_values"]
        image = apply_operations(batch.images[rows], operations, values, filter="bicubic", fill=fill)
        pixels = apply_jitter(image, params["jitter"], params["jitter_orders"], FULL.jitter, dtype=torch.float32)
        normalized = normalize(pixels + params["pca_alphas"] @ axes.T, MEAN, STD)
        alone.append(erase(normalized, params["erased_boxes"], params["noise_offsets"], noise=NOISE)[0])
    result = inputs(batch, FULL, channels_last=channels_last)
    kinds = set()
    for i in range(8):
        own, other = alone[i], alone[i + int(batch.params["partners"][i])]
        weight = batch.params["mix_weights"][i].float()
        top, left, height, width = batch.params["mix_boxes"][i].tolist()
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
    shift = batch.params["pca_alphas"].float() @ color_noise(PLAIN.pca, {}).axes.T
    assert torch.equal(inputs(batch, PLAIN), normalize(batch.images, MEAN, STD, shift=shift))
    assert torch.equal(partner_labels(batch), batch.labels)


@pytest.mark.parametrize(("source", "around"), [("torchvision", 0), ("timm", (120, 110, 100))])
def test_fill_color_around_a_warped_image(source, around):
    augmentation = dataclasses.replace(PLAIN, pca=Pca(0.0, "torch"), randaugment=RandAugment(source, num_ops=1))
    batch = batch_for(augmentation, 1)
    batch.params.update(operations=np.array([[3]]), operation_values=np.array([[15.0]], np.float32))
    expected = (torch.tensor(around) - MEAN) / STD
    result = inputs(batch, augmentation)[0, :, :, 1:]
    torch.testing.assert_close(result, expected[:, None, None].expand(3, 16, 15), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["torch", "torchvision"])
def test_augmentation_reads_nothing_back_from_the_device(source):
    """A tensor on the meta device has no data, so reading a value fails."""
    augmentation = dataclasses.replace(FULL, jitter=dataclasses.replace(FULL.jitter, source=source))
    if source == "torchvision":
        augmentation.jitter.hue = 0.1
    batch = batch_for(augmentation)
    there = batch._replace(
        images=batch.images.to("meta"),
        labels=batch.labels.to("meta"),
        params={name: v.to("meta") if isinstance(v, torch.Tensor) else v for name, v in batch.params.items()},
    )
    result = there.images
    for transform in transforms(augmentation).to("meta"):
        result = transform(result, there.params)
    assert result.is_meta and result.shape == (8, 3, 16, 16)
    assert partner_labels(there).is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        result.sum().item()


def test_partner_labels():
    assert partner_labels(batch_for(FULL)).tolist() == [30, 20, 10, 0, 70, 60, 50, 40]


class Invert(Transform):
    """A transform as a user would add it: inverts some images."""

    device_params = frozenset({"is_inverted"})

    @staticmethod
    def is_on(augmentation: Augmentation) -> bool:
        return True

    @staticmethod
    def draw(samples: Samples, augmentation: Augmentation) -> dict:
        return {"is_inverted": samples.index % 2 == 0}

    def forward(self, images: torch.Tensor, params: dict) -> torch.Tensor:
        return torch.where(params["is_inverted"][:, None, None, None], 255 - images, images)


def test_a_new_transform_needs_no_other_place_than_the_list(monkeypatch):
    """Its parameters reach the device and the digest; without it, parameters (and so the digest) are as before."""
    samples = Samples(np.arange(4), 0, 0, 0, np.arange(4))
    before = list(draw_params(samples, PLAIN))
    monkeypatch.setattr(pipeline, "PIPELINE", (Invert, *PIPELINE))
    monkeypatch.setattr(pipeline, "_HASHED", (*pipeline._HASHED, Invert))
    assert list(draw_params(samples, PLAIN)) == [*before, "is_inverted"]
    batch = batch_for(PLAIN)
    batch.params["is_inverted"] = torch.from_numpy(batch.params["is_inverted"])
    inverted = batch._replace(images=torch.cat([255 - batch.images[:1], batch.images[1:2]]).repeat(4, 1, 1, 1))
    result = inputs(batch._replace(images=batch.images[:2].repeat(4, 1, 1, 1)), PLAIN)
    monkeypatch.undo()
    assert torch.equal(result, inputs(inverted, PLAIN))
    monkeypatch.setattr(Invert, "is_on", lambda augmentation: False)
    assert list(draw_params(samples, PLAIN)) == before


def test_a_name_that_two_transforms_use_is_refused(monkeypatch):
    monkeypatch.setattr(Invert, "draw", lambda samples, augmentation: {"jitter": samples.index})
    monkeypatch.setattr(pipeline, "_HASHED", (*pipeline._HASHED, Invert))
    with pytest.raises(AssertionError, match="Invert: another transform"):
        draw_params(Samples(np.arange(4), 0, 0, 0, None), PLAIN)


@pytest.mark.parametrize(
    ("recipe", "most"),
    [("model=resnet50", 45), ("experiment=deit_small_patch16_224", 820), ("experiment=rsb_a1", 820)],
    ids=["resnet50", "deit", "rsb_a1"],
)
def test_a_batch_takes_few_operations(composed, recipe, most):
    """Images that drew the same kind of operation are one call, and all warps are one call."""
    augmentation = composed(recipe).augmentation
    groups = None if augmentation.mixing.mix_group is None else 32
    mixing = dataclasses.replace(augmentation.mixing, mix_group=groups)
    pca = dataclasses.replace(augmentation.pca, source="torch")  # the others need statistics of data
    augmentation = dataclasses.replace(augmentation, size=16, mixing=mixing, pca=pca)
    batch, steps = batch_for(augmentation, 32), transforms(augmentation)
    images = batch.images
    with Operations() as operations:
        for transform in steps:
            images = transform(images, batch.params)
    assert operations.counts.total() <= most, operations.counts

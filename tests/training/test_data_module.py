import threading
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch.distributed.utils import _to_kwargs

from tencrop.config import UserError, derive_batches
from tencrop.data.augmentation.crops import central_crops
from tencrop.data.augmentation.mixing import partner_labels
from tencrop.data.augmentation.pipeline import DEVICE_PARAMS, build_transforms
from tencrop.data.sampling.sampler import epoch_order
from tencrop.training.data_module import DataModule, validation_protocol
from typed import stand_in

NEEDS_FFCV = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed")
OPTIONS = ("data=imagefolder", "model=lenet5", "image_size=32", "short_side=32", "training.global_batch=8", "seed=3",
           "hardware=cpu", "hardware.workers=1")  # fmt: skip

STATISTICS = {"mean": [0.0] * 3, "std": [1.0] * 3, "eigenvalues": [1.0] * 3, "eigenvectors": np.eye(3).tolist()}


@pytest.fixture
def module(composed, prepared_photos):
    """module(*overrides, rank=0, step=0): the data module of the photographs on one rank, at an optimizer step."""
    modules = []

    def build(*overrides: str, rank: int = 0, step: int = 0) -> DataModule:
        config = composed(*OPTIONS, f"data.root={prepared_photos}", *overrides)
        data = DataModule(config, derive_batches(config))
        data.trainer = stand_in(
            Trainer,
            global_rank=rank,
            world_size=config.hardware.devices,
            global_step=step,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        modules.append(data)
        return data

    yield build
    for data in modules:
        data.close()


def epoch(loader) -> list:
    """The batches, their images copied out of the loader's memory."""
    return [batch._replace(images=batch.images.clone()) for batch in loader]


def fields(batch) -> dict:
    """All arrays of a batch by name, the parameters of its transforms included."""
    return {name: value for name, value in (batch._asdict() | batch.params).items() if name != "params"}


def joined(parts) -> np.ndarray:
    """A field of several batches, concatenated as arrays."""
    return np.concatenate([np.asarray(part) for part in parts])


def test_two_processes_get_the_samples_of_one(module):
    alone = epoch(module().train_dataloader())
    ranks = [epoch(module("hardware=ddp_cpu2", "hardware.workers=1", rank=r).train_dataloader()) for r in (0, 1)]
    assert [len(batches) for batches in (alone, *ranks)] == [3, 3, 3]
    for whole, *parts in zip(alone, *ranks, strict=True):
        for name, value in fields(whole).items():  # images, labels, boxes, flips, color: bit for bit
            assert np.array_equal(value, joined(fields(part)[name] for part in parts)), name


MIXED = ("augmentation.mixing.mixup_alpha=0.8", "augmentation.mixing.cutmix_alpha=1", "augmentation.mixing.mix_group=2")


def test_a_rank_keeps_its_part_of_the_order_only(module):
    for options in ([], ["augmentation.repeats=3"]):
        data = module("hardware.devices=2", *options, rank=1)
        order, positions = epoch_order(data.train_index, seed=3, epoch=4), data.positions().ravel()
        assert np.array_equal(data.samples(positions, 4)[0], order[positions // (3 if options else 1)])
        assert len(data.order(4)) == len(np.unique(data.samples(positions, 4)[0])) <= positions.size


def test_the_next_epoch_is_ordered_in_the_second_half_of_an_epoch(module, monkeypatch):
    data = module()
    positions, ordered = data.positions(), []
    monkeypatch.setattr(data.order, "prepare", ordered.append)
    for batch in positions:
        data.samples(batch, 4)
    assert ordered == [5] * len(ordered) and 0 < len(ordered) <= len(positions) / 2 + 1


def test_mixing_does_not_depend_on_ranks_or_accumulation(module):
    alone = epoch(module(*MIXED).train_dataloader())
    ranks = [
        epoch(module(*MIXED, "hardware=ddp_cpu2", "hardware.workers=1", rank=r).train_dataloader()) for r in (0, 1)
    ]
    parts = epoch(module(*MIXED, "hardware.max_micro_batch=2").train_dataloader())
    assert len(parts) == 12 and len({float(weight) for batch in alone for weight in batch.params["mix_weights"]}) > 6
    for number, whole in enumerate(alone):
        for name in ("partners", "mix_weights", "mix_boxes", "index"):
            expected = fields(whole)[name]
            assert np.array_equal(expected, joined(fields(part[number])[name] for part in ranks)), name
            assert np.array_equal(expected, joined(fields(part)[name] for part in parts[4 * number :][:4])), name


FULL = ("augmentation=deit", "augmentation.mixing.mix_group=2")


def test_copies_of_repeated_augmentation_are_adjacent_on_any_number_of_ranks(module):
    data = module(*FULL)
    alone = epoch(data.train_dataloader())
    order = epoch_order(np.arange(24), seed=3, epoch=0)
    assert joined(batch.index for batch in alone).tolist() == np.repeat(order, 3)[:24].tolist()
    assert data.steps_per_epoch == len(alone) == 3
    ranks = [epoch(module(*FULL, "hardware=ddp_cpu2", "hardware.workers=1", rank=r).train_dataloader()) for r in (0, 1)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        for name, value in fields(whole).items():
            assert np.array_equal(value, joined(fields(part)[name] for part in parts)), name
    boxes = joined(batch.boxes for batch in alone).reshape(8, 3, 4)
    assert (boxes[:, :1] != boxes[:, 1:]).any(axis=2).all()  # the copies of a sample are cut differently


def test_repeated_augmentation_resumes_at_the_next_step(module):
    first = epoch(module(*FULL).train_dataloader())
    resumed = epoch(module(*FULL, step=1).train_dataloader())
    assert len(resumed) == 2
    for expected, batch in zip(first[1:], resumed, strict=True):
        assert all(map(np.array_equal, fields(expected).values(), fields(batch).values()))


def test_gradient_accumulation_splits_the_same_batches(module):
    whole = joined(batch.index for batch in epoch(module().train_dataloader()))
    parts = epoch(module("hardware.max_micro_batch=2").train_dataloader())
    assert [len(batch.index) for batch in parts] == [2] * 12
    assert np.array_equal(joined(batch.index for batch in parts), whole)
    assert len(set(whole.tolist())) == 24


def test_a_run_resumes_at_the_next_step(module):
    first, second = (epoch(module(step=step).train_dataloader()) for step in (0, 3))
    assert not np.array_equal(first[0].index, second[0].index)
    resumed = epoch(module(step=4).train_dataloader())
    assert len(resumed) == 2
    for expected, batch in zip(second[1:], resumed, strict=True):
        assert torch.equal(expected.images, batch.images) and np.array_equal(expected.index, batch.index)


def test_lightning_sees_whole_epochs_after_a_resume(module):
    loader = module(step=4).train_dataloader()
    assert len(loader) == 3 and len(epoch(loader)) == 2


def test_a_replayed_batch_is_detected(module):
    data = module(step=4)
    batch = next(iter(data.train_dataloader()))
    data.check(batch, 1, 1)
    with pytest.raises(AssertionError):
        data.check(batch, 1, 0)


def test_the_reference_loader_yields_the_same_samples(module):
    fast, reference = (
        epoch(module(f"data.loader={loader}", "data.store.mode=jpeg", *FULL).train_dataloader())
        for loader in ("beton", "torch")
    )
    for one, other in zip(fast, reference, strict=True):
        expected = fields(other)
        for name, value in fields(one).items():
            assert type(value) is type(expected[name]), name
            assert name == "images" or np.array_equal(value, expected[name]), name
        assert one.images.shape == other.images.shape


def test_the_minival_is_disjoint_from_training(module):
    data = module("training.minival_fraction=0.25")
    seen = joined(batch.index for batch in epoch(data.train_dataloader()))
    selected = joined(batch.index for batch in epoch(data.val_dataloader()))
    assert data.num_validation_images == len(selected) == 6 and data.steps_per_epoch == 2
    assert not set(seen.tolist()) & set(selected.tolist())
    other = module("training.minival_fraction=0.25", "seed=4")
    assert np.array_equal(other.val_index, data.val_index)


def test_validation_uses_every_image_once_in_uneven_parts(module):
    data = module("hardware.max_micro_batch=4")
    data.trainer.world_size = 5
    indices = []
    for rank in range(5):
        data.trainer.global_rank = rank
        indices += [batch.index for batch in epoch(data.val_dataloader())]
    assert joined(indices).tolist() == list(range(12))


def test_validation_images_are_rescaled_to_the_short_side(module):
    batch = epoch(module("short_side=40").val_dataloader())[0]
    assert (batch.sizes.min(axis=1) == 40).all()
    assert batch.images.shape[1:3] == tuple(batch.sizes.max(axis=0).tolist())
    assert not batch.flips.any() and not batch.params["pca_alphas"].any()


def test_the_validation_protocol_depends_only_on_learning_keys(composed):
    one = validation_protocol(composed(*OPTIONS))
    other = validation_protocol(composed(*OPTIONS, "protocol=ten_crop", "protocol.side=99", "protocol.filter=box"))
    assert one == other and (one.name, one.side, one.size) == ("center", 32, 32)


def test_a_batch_larger_than_the_data_is_refused(module):
    with pytest.raises(UserError, match=r"training\.global_batch=32: there are only 24 images"):
        module("training.global_batch=32")


def test_a_minival_smaller_than_the_number_of_devices_is_refused(module):
    with pytest.raises(UserError, match=r"1 images to validate on.*raise training\.minival_fraction"):
        module("training.minival_fraction=0.02", "hardware=ddp_cpu2", "hardware.workers=1")


def test_fields_that_the_step_does_not_compute_with_stay_on_the_host(module):
    data = module()
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    there = {name for name, value in fields(moved).items() if not isinstance(value, np.ndarray) and value.is_meta}
    assert there == {"images", "labels"} | (DEVICE_PARAMS & batch.params.keys())
    assert all(isinstance(value, np.ndarray) for name, value in fields(moved).items() if name not in there)


MOVING = (*FULL, "augmentation.jitter.source=torchvision", "augmentation.jitter.hue=0.1")


@pytest.mark.parametrize("loader", ["beton", "torch"])
def test_host_fields_stay_readable_after_ddp_moved_a_batch(module, loader):
    """With device_ids DDP's forward pass moves every tensor of its arguments to the GPU; here to the meta device, whose
    tensors cannot be read. A training step must still work, on the host and on both."""
    data, meta = module(f"data.loader={loader}", *MOVING), torch.device("meta")
    training, validation = (
        _to_kwargs((next(iter(loader)), 0), {}, meta, False)[0][0][0]
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert training.images.is_meta and training.labels.is_meta and validation.images.is_meta
    data.check(training, 0, 0)
    assert data.digest.sums.count_nonzero() == 4
    inputs = training.images
    for transform in build_transforms(data.config, STATISTICS).to(meta):
        inputs = transform(inputs, training.params)
    assert inputs.is_meta and inputs.shape == (8, 3, 32, 32) and partner_labels(training).is_meta
    assert central_crops(validation.images, validation.sizes, size=32).shape == (8, 32, 32, 3)


def test_closing_ends_the_threads(module):
    data = module("training.global_batch=2")  # more batches than are made ahead: the thread is not done by itself
    iterator = iter(data.train_dataloader())
    next(iterator)
    assert any(thread.name == "tencrop-loader" for thread in threading.enumerate())
    data.teardown("fit")
    assert not any(thread.name == "tencrop-loader" for thread in threading.enumerate())


def test_the_digest_does_not_depend_on_ranks_accumulation_or_loader(module):
    """Nor on interruptions: the sums in a checkpoint are those of all ranks."""

    def digest(*overrides: str, rank: int = 0, steps=(0, 1, 2)):
        data = module(*overrides, rank=rank)
        for number, batch in enumerate(data.train_dataloader()):
            if number // data.batches.accumulate_grad_batches in steps:
                data.check(batch, 0, number)
        return data.digest.sums.clone()

    whole = digest()
    assert whole.count_nonzero() == 4  # of the pixels too: a run on the CPU is exact
    assert torch.equal(digest("hardware.max_micro_batch=2"), whole)
    two = ("hardware=ddp_cpu2", "hardware.workers=1")
    assert torch.equal(digest(*two, rank=0) + digest(*two, rank=1), whole)
    assert torch.equal(digest(steps=(0,)) + digest(steps=(1, 2)), whole)
    assert torch.equal(digest("data.loader=torch"), whole)
    if find_spec("ffcv"):
        of_ffcv = digest("data.loader=ffcv")
        assert torch.equal(of_ffcv[:2], whole[:2]) and not torch.equal(of_ffcv[2:], whole[2:])  # its own pixels
    assert torch.equal(digest("deterministic=false")[2:], torch.zeros(2, dtype=torch.int64))
    for other in ("seed=4", "augmentation.flip=0", "augmentation.pca.std=0.2", MIXED):
        assert not torch.equal(digest(*([other] if isinstance(other, str) else other))[:2], whole[:2])


GROWING = ["augmentation.progressive.start_size=16", "augmentation.progressive.start_ramp=0"]
GROWING += ["augmentation.progressive.end_ramp=2", "augmentation.progressive.multiple=8"]


def test_progressive_resizing_gives_the_size_of_the_epoch(module):
    """On one rank and on two, with micro-batches, and in a run that resumes within the epoch."""
    two = ("hardware=ddp_cpu2", "hardware.workers=1")
    for number, size in enumerate((16, 24, 32, 32)):
        alone = epoch(module(*GROWING, step=3 * number).train_dataloader())
        assert [batch.images.shape for batch in alone] == [(8, size, size, 3)] * 3
        assert all((batch.sizes == size).all() for batch in alone)
        ranks = [epoch(module(*GROWING, *two, rank=r, step=3 * number).train_dataloader()) for r in (0, 1)]
        parts = epoch(module(*GROWING, "hardware.max_micro_batch=4", step=3 * number).train_dataloader())
        resumed = epoch(module(*GROWING, step=3 * number + 2).train_dataloader())
        for name, expected in fields(alone[2]).items():
            assert np.array_equal(expected, joined(fields(part[2])[name] for part in ranks)), name
            assert np.array_equal(expected, joined(fields(part)[name] for part in parts[4:])), name
            assert np.array_equal(expected, fields(resumed[0])[name]), name


def test_progressive_resizing_keeps_the_size_of_validation(module):
    assert epoch(module(*GROWING, "short_side=40").val_dataloader())[0].sizes.min() == 40


@pytest.mark.parametrize("loader", ["torch", pytest.param("ffcv", marks=NEEDS_FFCV)])
def test_progressive_resizing_is_the_same_in_every_loader(module, loader):
    def digests(name: str):
        data = module(*GROWING, f"data.loader={name}")
        batches = data.train_dataloader()
        for number in range(3):
            for position, batch in enumerate(batches):
                data.check(batch, number, position)
            data.trainer.global_step += 3
            yield data.digest.sums.clone()

    for ours, theirs in zip(digests("beton"), digests(loader), strict=True):
        assert torch.equal(ours[:2], theirs[:2])  # what was planned
        assert torch.equal(ours, theirs) == (loader == "torch")  # ffcv has pixels of its own


def test_the_first_rank_restores_the_digest_of_all_ranks(module):
    data = module()
    data.digest.sums += torch.arange(4)
    state = data.state_dict()
    for rank, expected in ((0, [0, 1, 2, 3]), (1, [0] * 4)):
        other = module()
        other.trainer.is_global_zero = rank == 0
        other.digest.sums += 7
        other.load_state_dict(state)
        assert other.digest.sums.tolist() == expected

"""Wires splits, order, plan and loader into what Lightning trains and validates on. Built by `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from tencrop.config import Batches, Config, Protocol, UserError, is_deterministic, num_workers
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.plan import evaluation_plan, training_plan
from tencrop.data.loading.loader import BaseLoader
from tencrop.data.loading.loaders import loader_class
from tencrop.data.sampling.digest import Digest
from tencrop.data.sampling.rng import Index
from tencrop.data.sampling.sampler import (
    epoch_order,
    evaluation_batches,
    minival_split,
    training_positions,
    within_memory,
)
from tencrop.data.store.manifest import Split, open_split


class DataModule(pl.LightningDataModule):
    """The training images of a recipe, and the images that its validation looks at: the minival where there is one,
    else the val split. Every rank gets its part of the same global batches."""

    def __init__(self, config: Config, batches: Batches):
        """Raises UserError where data.root is not prepared, training.global_batch exceeds the training images, or the
        loader cannot be imported."""
        super().__init__()
        self.config, self.batches = config, batches
        self.loader_class = loader_class(config.data.loader)
        self.train_split = self._open("train")
        fraction = config.training.minival_fraction
        self.train_index, minival_index = minival_split(self.train_split.num_samples, fraction=fraction)
        self.val_split = self.train_split if fraction > 0 else self._open("val")
        self.val_index = minival_index if fraction > 0 else np.arange(self.val_split.num_samples)
        self.steps_per_epoch = len(self.train_index) // config.training.global_batch
        if self.steps_per_epoch == 0:
            raise UserError(
                f"training.global_batch={config.training.global_batch}: there are only {len(self.train_index)} images"
                f" to train on; choose a batch of at most {len(self.train_index)}"
            )
        if len(self.val_index) < batches.num_devices:
            mend = "raise training.minival_fraction" if fraction > 0 else "prepare more of them"
            raise UserError(
                f"hardware.devices={config.hardware.devices}: {len(self.val_index)} images to validate on cannot be"
                f" shared by {batches.num_devices} devices; use fewer devices, or {mend}"
            )
        self.order = lru_cache(maxsize=2)(self._order)  # the plan and the check of its batches share it
        self.positions = cache(self._positions)  # of this rank
        self.loaders: list[BaseLoader] = []
        self.digest = Digest()  # of this rank's training batches

    @property
    def num_validation_images(self) -> int:
        return len(self.val_index)

    def train_dataloader(self) -> Any:
        config = self.config
        sizes, augmentation = self.train_split.stored_sizes, config.augmentation

        def plan(positions: Index, epoch: int) -> Any:
            index, view = self.samples(positions, epoch)
            return training_plan(
                index, sizes, augmentation=augmentation, seed=config.seed, epoch=epoch, view=view, positions=positions
            )

        positions = self.positions()
        loader = self._loader(
            self.train_split,
            lambda epoch: positions,
            plan,
            filter=augmentation.filter,
            hash_pixels=is_deterministic(config),
        )
        return Positioned(loader, self._position)

    def val_dataloader(self) -> Any:
        protocol = validation_protocol(self.config)
        rank, num_ranks = self.trainer.global_rank, self.trainer.world_size  # type: ignore[union-attr]
        parts = evaluation_batches(self.val_index, micro_batch=self.batches.micro_batch, rank=rank, num_ranks=num_ranks)
        plan = partial(evaluation_plan, stored_sizes=self.val_split.stored_sizes, protocol=protocol)
        parts = within_memory(parts, plan(np.arange(self.val_split.num_samples)).sizes)
        loader = self._loader(
            self.val_split, lambda epoch: parts, lambda index, epoch: plan(index), filter=protocol.filter
        )
        return Positioned(loader, lambda: {"epoch": 0, "batch": 0})

    def samples(self, positions: Index, epoch: int) -> tuple[Index, Index]:
        """The sample at each of these positions of the epoch, and which copy of it.

        Under repeated augmentation (Hoffer et al. 2020; Berman et al. 2019) copies stand side by side; as in DeiT an
        epoch is as long as without, and so it sees only the first part of its order.
        """
        row, view = np.divmod(positions, self.config.augmentation.repeats)
        return self.order(epoch)[row], view

    def check(self, batch: Batch, epoch: int, batch_idx: int) -> None:
        """Asserts that a training batch is the one that (epoch, micro-batch) means: none replayed, none skipped;
        and counts it into the digest."""
        positions = self.positions()[batch_idx]
        assert np.array_equal(batch.index, self.samples(positions, epoch)[0]), (epoch, batch_idx)
        images_per_epoch = self.steps_per_epoch * self.config.training.global_batch
        self.digest.add(batch.hashes, epoch * images_per_epoch + positions)

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest.sums.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What all ranks saw until the checkpoint stands with the first."""
        is_first = self.trainer is not None and self.trainer.is_global_zero
        self.digest.sums.copy_(state_dict["digest"] if is_first else torch.zeros_like(self.digest.sums))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The tensors cross without waiting; the arrays stay on the host."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in batch._asdict().items()
            if isinstance(value, torch.Tensor)
        }
        return batch._replace(**moved)

    def teardown(self, stage: str) -> None:
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Ends the loaders' threads."""
        for loader in self.loaders:
            loader.close()
        self.loaders.clear()

    def _open(self, name: str) -> Split:
        return open_split(self.config.data.root, name, source=self.config.data.source, data=self.config.data.name)

    def _position(self) -> dict[str, int]:
        assert self.trainer is not None
        epoch, step = divmod(self.trainer.global_step, self.steps_per_epoch)
        return {"epoch": epoch, "batch": step * self.batches.accumulate_grad_batches}

    def _order(self, epoch: int) -> Index:
        return epoch_order(self.train_index, seed=self.config.seed, epoch=epoch)

    def _positions(self) -> Index:
        trainer = self.trainer
        assert trainer is not None
        return training_positions(
            self.steps_per_epoch,
            global_batch=self.config.training.global_batch,
            micro_batch=self.batches.micro_batch,
            rank=trainer.global_rank,
            num_ranks=trainer.world_size,
        )

    def _loader(self, split: Split, batches: Any, plan: Any, **options: Any) -> Any:
        is_gpu = self.trainer.strategy.root_device.type == "cuda"  # type: ignore[union-attr]
        threads = num_workers(self.config.hardware)
        loader = self.loader_class(split, batches, plan, num_threads=threads, pin_memory=is_gpu, **options)
        self.loaders.append(loader)
        return loader


class Positioned:
    """A loader whose every pass begins where `position` says. In training that is a function of the steps taken alone:
    after a resume nothing of the epoch is read again, and Lightning's own count of batches is not relied on."""

    def __init__(self, loader: Any, position: Callable[[], dict[str, int]]):
        self.loader, self.position = loader, position

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.load_state_dict(self.position())
        return iter(self.loader)

    # Lightning asks a loader for these before it resumes within an epoch.
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        pass


def validation_protocol(config: Config) -> Protocol:
    """The central crop by which a run watches itself. A function of learning keys alone, as the plateau schedule and
    the choice of the best checkpoint depend on it; `protocol` is free for the final evaluation."""
    return Protocol(
        name="center",
        side=config.short_side,
        size=config.image_size,
        region="whole",
        filter=config.augmentation.filter,
        average="softmax",
    )

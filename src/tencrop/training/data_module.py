"""The Lightning data module: wires split, sampler, plan and loader into batches for training and validation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from tencrop.config import Batches, Config, Protocol, UserError, is_deterministic, num_workers
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.mean_image import mean_side
from tencrop.data.augmentation.plan import evaluation_plan, training_plan
from tencrop.data.loading.copy_ahead import copied_ahead
from tencrop.data.loading.loader import BaseLoader
from tencrop.data.loading.loaders import loader_class
from tencrop.data.sampling.digest import Digest
from tencrop.data.sampling.rng import Index
from tencrop.data.sampling.sampler import (
    OrderAhead,
    epoch_order,
    evaluation_batches,
    minival_split,
    split_to_fit_memory,
    training_positions,
)
from tencrop.data.store.manifest import Split, open_split


class DataModule(pl.LightningDataModule):
    """Training batches of a recipe and its validation batches: from the minival if there is one, else the val split.

    Every rank gets its part of the same global batches.
    """

    def __init__(self, config: Config, batches: Batches):
        """Raises UserError if data.root is not prepared, the loader cannot be imported, training.global_batch exceeds
        the number of training images, or there are more devices than validation images."""
        super().__init__()
        self.config, self.batches = config, batches
        self.loader_class = loader_class(config.data.loader)
        self.train_split = self._open("train")
        fraction = config.training.minival_fraction
        train_index, self.minival_index = minival_split(self.train_split.num_samples, fraction=fraction)
        self.val_split = self.train_split if fraction > 0 else self._open("val")
        self.val_index = self.minival_index if fraction > 0 else np.arange(self.val_split.num_samples)
        # The last partial batch is dropped. The order changes in every epoch, so other images are in it each time.
        self.steps_per_epoch = len(train_index) // config.training.global_batch
        if self.steps_per_epoch == 0:
            raise UserError(
                f"training.global_batch={config.training.global_batch}: there are only {len(train_index)} images"
                f" to train on; choose a batch of at most {len(train_index)}"
            )
        num_images = self.steps_per_epoch * config.training.global_batch
        if config.training.precise_bn is not None and config.training.precise_bn > num_images:
            raise UserError(
                f"training.precise_bn={config.training.precise_bn}: an epoch has only {num_images} images; set it to at"
                " most that"
            )
        if len(self.val_index) < batches.num_devices:
            remedy = "raise training.minival_fraction" if fraction > 0 else "prepare more of them"
            raise UserError(
                f"hardware.devices={config.hardware.devices}: {len(self.val_index)} images to validate on cannot be"
                f" shared by {batches.num_devices} devices; use fewer devices, or {remedy}"
            )
        self.order = OrderAhead(self._order)  # shared by the loader's thread and `check`
        self.positions = cache(self._positions)  # needs the trainer's rank, which is not known yet
        self.places = cache(self._places)
        self.copying_stream = cache(lambda device: torch.cuda.Stream(device))
        self.loaders: list[BaseLoader] = []
        self.digest = Digest()  # of this rank's training batches

    @property
    def num_validation_images(self) -> int:
        return len(self.val_index)

    @property
    def train_index(self) -> Index:
        """The samples to train on, ascending. Not kept: 8 bytes an image on each rank."""
        return np.delete(np.arange(self.train_split.num_samples), self.minival_index)

    def train_dataloader(self) -> Any:
        return ResumableLoader(self._train_loader(self.positions()), self._position, self._on_device)

    def _on_device(self, batches: Generator[Batch, None, None]) -> Iterator[Batch]:
        """Batches that are on the GPU already; on a CPU the same ones."""
        device = self.trainer.strategy.root_device  # type: ignore[union-attr]
        if device.type != "cuda":
            return batches
        copying = self.copying_stream(device)
        return copied_ahead(
            batches, device, lambda batch: self.transfer_batch_to_device(batch, device, 0), copying=copying
        )

    def precise_bn_batches(self, epoch: int, device: torch.device) -> Iterator[Batch]:
        """The first micro-batches of an epoch, on the device: this rank's part of training.precise_bn images."""
        num_images = self.config.training.precise_bn
        assert num_images is not None
        num_steps = num_images // self.config.training.global_batch
        loader = self._train_loader(self.positions()[: num_steps * self.batches.accumulate_grad_batches])
        for batch in loader.batches(epoch, 0):
            yield self.transfer_batch_to_device(batch, device, 0)
        loader.close()

    def _train_loader(self, positions: Any) -> BaseLoader:
        config = self.config
        sizes, augmentation = self.train_split.stored_sizes, config.augmentation

        def plan(positions: Index, epoch: int) -> Any:
            index, view = self.samples(positions, epoch)
            return training_plan(
                index,
                sizes,
                augmentation=augmentation,
                seed=config.seed,
                epoch=epoch,
                view=view,
                positions=positions,
                mean_side=mean_side(config.normalization, size=augmentation.size),
            )

        # Positions are the same in every epoch; `samples` maps them to sample indices.
        return self._loader(
            self.train_split,
            lambda epoch: positions,
            plan,
            filter=augmentation.filter,
            # 45 ms of a core for 256 images (sampling/digest.py), and only a deterministic run promises equal pixels.
            hash_pixels=is_deterministic(config),
        )

    def val_dataloader(self) -> Any:
        protocol = validation_protocol(self.config)
        rank, num_ranks = self.trainer.global_rank, self.trainer.world_size  # type: ignore[union-attr]
        parts = evaluation_batches(self.val_index, micro_batch=self.batches.micro_batch, rank=rank, num_ranks=num_ranks)
        plan = partial(evaluation_plan, stored_sizes=self.val_split.stored_sizes, protocol=protocol)
        # Whole images are padded to the largest of their batch, so one panorama would multiply the memory of all.
        parts = split_to_fit_memory(parts, plan(np.arange(self.val_split.num_samples)).sizes)
        loader = self._loader(
            self.val_split, lambda epoch: parts, lambda index, epoch: plan(index), filter=protocol.filter
        )
        return ResumableLoader(loader, lambda: (0, 0))  # always the whole split

    def samples(self, positions: Index, epoch: int) -> tuple[Index, Index]:
        """(sample index, copy number) at each of these positions in the epoch.

        Under repeated augmentation (Hoffer et al. 2020; Berman et al. 2019) the copies of a sample are adjacent. As in
        DeiT an epoch keeps its length, so with 3 repeats it covers only the first third of its order.
        """
        # Adjacent copies are in the same global batch, except at its edges: both papers study several views of a sample
        # in one step. DeiT instead distributes the copies over its ranks, which would depend on their number.
        if positions[-1] >= self.steps_per_epoch * self.config.training.global_batch // 2:
            self.order.prepare(epoch + 1)  # not at the epoch's start, when the loader has no batch ready yet
        place, view = np.divmod(positions, self.config.augmentation.repeats)
        return self.order(epoch)[np.searchsorted(self.places(), place)], view

    def check(self, batch: Batch, epoch: int, batch_idx: int) -> None:
        """Assert that this is micro-batch `batch_idx` of `epoch`, not replayed or skipped, and add it to the digest."""
        positions = self.positions()[batch_idx]
        assert np.array_equal(batch.index, self.samples(positions, epoch)[0]), (epoch, batch_idx)
        # Positions in the run, not in the epoch: the same sample in another epoch must count differently.
        images_per_epoch = self.steps_per_epoch * self.config.training.global_batch
        self.digest.add(batch.hashes, epoch * images_per_epoch + positions)

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest.sums.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the digest. The checkpoint holds the sum over all ranks, so only the first rank takes it."""
        is_first = self.trainer is not None and self.trainer.is_global_zero
        self.digest.sums.copy_(state_dict["digest"] if is_first else torch.zeros_like(self.digest.sums))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy the tensors asynchronously; the NumPy arrays stay on the host, and so do tensors already there."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        params = {name: move(value) for name, value in batch.params.items()}
        return batch._replace(images=move(batch.images), labels=move(batch.labels), params=params)

    def teardown(self, stage: str) -> None:
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """End the loaders' threads and worker processes."""
        for loader in self.loaders:
            loader.close()
        self.loaders.clear()
        self.order.close()

    def _open(self, name: str) -> Split:
        return open_split(self.config.data.root, name, source=self.config.data.source, data=self.config.data.name)

    def _position(self) -> tuple[int, int]:
        """(epoch, micro-batch) of the next optimizer step."""
        assert self.trainer is not None
        epoch, step = divmod(self.trainer.global_step, self.steps_per_epoch)
        return epoch, step * self.batches.accumulate_grad_batches

    def _order(self, epoch: int) -> Index:
        return epoch_order(self.train_index, seed=self.config.seed, epoch=epoch, places=self.places())

    def _places(self) -> Index:
        """The places in the order of an epoch that this rank reads; it does not keep the rest."""
        return np.unique(self.positions() // self.config.augmentation.repeats)

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

    def _loader(self, split: Split, batch_sampler: Any, plan: Any, **options: Any) -> Any:
        # Pinned memory only where a GPU copies from it: it cannot be swapped out, and pinning it takes time.
        is_gpu = self.trainer.strategy.root_device.type == "cuda"  # type: ignore[union-attr]
        threads = num_workers(self.config.hardware)
        loader = self.loader_class(split, batch_sampler, plan, num_threads=threads, pin_memory=is_gpu, **options)
        self.loaders.append(loader)
        return loader


class ResumableLoader:
    """The iterable that Lightning gets: a loader that starts each pass at `position()`, an (epoch, micro-batch).

    In training the position is a function of the optimizer step alone. A resumed run therefore neither replays a batch
    nor decodes one that it skips, and does not depend on Lightning's own count of batches.
    """

    def __init__(
        self,
        loader: BaseLoader,
        position: Callable[[], tuple[int, int]],
        on_device: Callable[[Generator[Batch, None, None]], Iterator[Batch]] = iter,
    ):
        """on_device: from the loader's batches to those that are yielded."""
        self.loader, self.position, self.on_device = loader, position, on_device

    def __len__(self) -> int:
        return self.loader.num_batches(0)  # every epoch has as many, also one that is resumed in the middle

    def __iter__(self) -> Iterator[Batch]:
        return self.on_device(self.loader.batches(*self.position()))

    # Lightning warns that it cannot resume within an epoch unless a loader has these two. The position needs no state,
    # so they are empty.
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        pass


def validation_protocol(config: Config) -> Protocol:
    """The central crop with which a run validates during training.

    It depends only on keys of the learning hash, because the plateau schedule and the best checkpoint depend on it;
    `protocol` may change freely and applies to the final evaluation alone.
    """
    return Protocol(
        name="center",
        side=config.short_side,
        size=config.image_size,
        region="whole",
        filter=config.augmentation.filter,
        average="softmax",
    )

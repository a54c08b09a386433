"""Short measurement of a recipe on this machine: the loader alone, training steps alone, and both together.

The command train calls this with plan=true. One process measures one device, with its share of the global batch and of
the loader's threads; nothing is written.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pytorch_lightning import Callback

from tencrop.config import Batches, Config, accelerator_of, num_workers
from tencrop.data.augmentation.batch import Batch
from tencrop.data.sampling.sampler import training_positions
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule
from tencrop.training.fit import build, build_trainer, quiet_lightning
from tencrop.training.out_of_memory import explaining_out_of_memory

# More steps than a loader keeps batches ready (BaseLoader.prefetch + 2), so that none of those is timed. cuDNN's search
# for algorithms falls into them, too.
WARM_UP_STEPS = 6
MAX_WARM_UP_S = 10.0  # a slow network on a CPU must not warm up for minutes
MAX_STEPS, MAX_SECONDS = 100, 10.0  # whichever comes first, but at least one step


@dataclass(frozen=True)
class Timing:
    """Time per optimizer step of one device."""

    seconds: float
    num_steps: int  # timed, after the warm-up


@dataclass(frozen=True)
class Probe:
    """What one device needs for an optimizer step, and how many steps the recipe has."""

    loader: Timing  # reading, cropping and planning alone
    step: Timing  # copying to the device, augmentation, forward and backward pass and update, of the same images
    both: Timing  # as in training
    peak_memory: int  # bytes: of the process on a CPU, reserved by torch on a GPU
    steps_per_epoch: int
    total_steps: int


def probe(config: Config, *, batches: Batches, manifest: dict[str, Any]) -> Probe:
    """Measure for about half a minute; longer only if a single step takes longer than 10 seconds.

    Raises UserError if the recipe does not fit the data, the network or the device's memory.
    """
    one = dataclasses.replace(config, hardware=one_device(config))
    data, classifier = build(one, batches=batches, manifest=manifest)
    steps_per_epoch, total_steps = classifier.steps_per_epoch, classifier.total_steps
    classifier.total_steps = classifier.schedule_steps = sys.maxsize  # a short recipe must not end the measurement
    loader = _time_loader(one, batches)
    step = _time_training(config, classifier, _SameBatch(one, batches))
    both = _time_training(config, classifier, _OneRank(one, batches))
    data.close()
    return Probe(loader, step, both, _peak_memory(one), steps_per_epoch, total_steps)


def one_device(config: Config) -> Any:
    """The hardware of the configuration, cut to one device that keeps its share of the loader's threads."""
    return dataclasses.replace(config.hardware, devices=1, nodes=1, workers=num_workers(config.hardware))


class Stopwatch:
    """Times the steps of a loop: first a warm-up, then MAX_STEPS steps or MAX_SECONDS."""

    def __init__(self) -> None:
        self.created, self.num_steps = time.perf_counter(), 0
        self.start: float | None = None
        self.timing: Timing | None = None

    def lap(self) -> bool:
        """Call after each step. Returns whether `timing` is known now, so that the loop can end."""
        self.num_steps += 1
        now = time.perf_counter()
        if self.start is None:
            if self.num_steps == WARM_UP_STEPS or now - self.created > MAX_WARM_UP_S:
                _wait_for_device()
                self.num_steps, self.start = 0, time.perf_counter()
            return False
        # Only the last step waits for the device. Waiting in each would keep the host from running ahead.
        if self.num_steps < MAX_STEPS and now - self.start < MAX_SECONDS:
            return False
        _wait_for_device()
        self.timing = Timing((time.perf_counter() - self.start) / self.num_steps, self.num_steps)
        return True


class _Measured(Exception):
    """Ends a training that has been timed."""


class _Timer(Callback):
    stopwatch: Stopwatch

    def on_train_start(self, trainer: Any, classifier: Any) -> None:
        self.stopwatch = Stopwatch()  # here, since the set-up before it takes seconds that the warm-up needs

    def on_train_batch_end(self, trainer: Any, classifier: Any, *_: Any) -> None:
        if classifier.is_at_step_boundary and self.stopwatch.lap():
            raise _Measured


class _OneRank(DataModule):
    """The batches of rank 0, whatever the number of devices, in a single process."""

    def _positions(self) -> Any:
        batches = self.batches
        return training_positions(
            self.steps_per_epoch,
            global_batch=self.config.training.global_batch,
            micro_batch=batches.micro_batch,
            rank=0,
            num_ranks=batches.num_devices,
        )


class _SameBatch(_OneRank):
    """The first micro-batch of the epoch, again and again: training does not wait for a loader."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        batch = next(iter(loader))
        images = batch.images.clone()  # the loader would reuse the memory
        if batch.images.is_pinned():
            images = images.pin_memory()
        self.close()
        return _Repeated(batch._replace(images=images), len(loader))

    def check(self, batch: Batch, epoch: int, batch_idx: int) -> None:
        pass  # it is not the batch of this step, on purpose


class _Repeated:
    """`batch`, `num_batches` times in each pass."""

    def __init__(self, batch: Batch, num_batches: int):
        self.batch, self.num_batches = batch, num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch for _ in range(self.num_batches))


def _time_loader(config: Config, batches: Batches) -> Timing:
    data, stopwatch = _OneRank(config, batches), Stopwatch()
    device = torch.device("cuda" if accelerator_of(config.hardware) == "gpu" else "cpu")
    trainer: Any = SimpleNamespace(
        global_step=0, global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=device)
    )
    data.trainer = trainer
    loader = data.train_dataloader()
    try:
        while True:  # over epochs, which may be shorter than the measurement
            for number, _ in enumerate(loader, 1):
                if number % batches.accumulate_grad_batches == 0:
                    trainer.global_step += 1
                    if stopwatch.lap():
                        assert stopwatch.timing is not None
                        return stopwatch.timing
    finally:
        data.close()


def _time_training(config: Config, classifier: Classifier, data: DataModule) -> Timing:
    timer = _Timer()
    with quiet_lightning():
        # Neither logger nor checkpoints: Lightning writes nothing to its default folder.
        trainer = build_trainer(
            data.config, num_epochs=-1, run_dir=Path(config.runs), logger=None, callbacks=[timer], checkpoint=None
        )
        trainer.limit_val_batches = 0
        try:
            with explaining_out_of_memory(config, classifier, trainer):
                trainer.fit(classifier, data)
        except _Measured:
            pass
        finally:
            data.close()
    assert timer.stopwatch.timing is not None
    return timer.stopwatch.timing


def _peak_memory(config: Config) -> int:
    if accelerator_of(config.hardware) == "gpu":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

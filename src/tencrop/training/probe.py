"""Short measurement of a recipe on this machine: the loader alone, training steps alone, and both together.

commands/plan.py calls this for train.py plan=true. One process measures one device, with the device's share of the
global batch and of the loader's threads. Nothing is written.
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
from tencrop.config.schema import Progressive
from tencrop.data.augmentation.batch import Batch
from tencrop.data.sampling.sampler import training_positions
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule
from tencrop.training.fit import build, build_trainer, quiet_lightning
from tencrop.training.out_of_memory import explaining_out_of_memory

# More than the batches that a loader holds ready (prefetch + 2 = 5): a batch loaded before the timing is not timed.
# cuDNN also searches for algorithms during these steps.
WARM_UP_STEPS = 6
MAX_WARM_UP_S = 10.0  # a slow network on a CPU must not warm up for minutes
MAX_STEPS, MAX_SECONDS = 100, 10.0  # whichever comes first, but at least one step


@dataclass(frozen=True)
class Timing:
    """Mean time of an optimizer step on one device."""

    seconds: float  # per step
    num_steps: int  # timed steps; the warm-up is not counted


@dataclass(frozen=True)
class Probe:
    """What one device needs for an optimizer step, and how many steps the recipe has."""

    loader: Timing  # drawing crops, reading and decoding alone
    step: Timing  # copy to the device, augmentation, forward, backward and update, always on the same batch
    both: Timing  # as in training
    peak_memory_bytes: int  # of the process on a CPU, reserved by torch on a GPU
    steps_per_epoch: int
    total_steps: int


def probe(config: Config, *, batches: Batches, manifest: dict[str, Any]) -> Probe:
    """Measure for at most about a minute; longer if a single step takes several seconds.

    Raises UserError if the recipe does not fit the data, the network or the device's memory.
    """
    # At the full size: the smaller crops of progressive resizing would promise too little time and memory.
    augmentation = dataclasses.replace(config.augmentation, progressive=Progressive())
    one = dataclasses.replace(config, hardware=one_device(config), augmentation=augmentation)
    data, classifier = build(one, batches=batches, manifest=manifest)
    steps_per_epoch, total_steps = classifier.steps_per_epoch, classifier.total_steps
    classifier.total_steps = classifier.schedule_steps = sys.maxsize  # a short recipe must not end the measurement
    loader = time_loader(one, batches)
    step = _time_training(config, classifier, _SameBatch(one, batches))
    both = _time_training(config, classifier, _OneRank(one, batches))
    data.close()
    return Probe(loader, step, both, _peak_memory(one), steps_per_epoch, total_steps)


def one_device(config: Config) -> Any:
    """The hardware settings for one device, with its share of the loader's threads."""
    return dataclasses.replace(config.hardware, devices=1, nodes=1, workers=num_workers(config.hardware))


class Stopwatch:
    """Times the steps of a loop, for MAX_STEPS or MAX_SECONDS after a warm-up."""

    def __init__(self) -> None:
        self.created, self.num_steps = time.perf_counter(), 0
        self.start: float | None = None
        self.timing: Timing | None = None

    def lap(self) -> bool:
        """Call after each step. Returns True once `timing` is set; the loop can then end."""
        self.num_steps += 1
        now = time.perf_counter()
        if self.start is None:
            if self.num_steps == WARM_UP_STEPS or now - self.created > MAX_WARM_UP_S:
                _wait_for_device()
                self.num_steps, self.start = 0, time.perf_counter()
            return False
        # Synchronize after the last step only: after every step, the host could not run ahead as it does in training.
        if self.num_steps < MAX_STEPS and now - self.start < MAX_SECONDS:
            return False
        _wait_for_device()
        self.timing = Timing((time.perf_counter() - self.start) / self.num_steps, self.num_steps)
        return True


class _Measured(Exception):
    """Raised to end trainer.fit once the timing is known."""


class _Timer(Callback):
    stopwatch: Stopwatch

    def on_train_start(self, trainer: Any, classifier: Any) -> None:
        self.stopwatch = Stopwatch()  # not in __init__: fit's set-up takes seconds, which would count as warm-up

    def on_train_batch_end(self, trainer: Any, classifier: Any, *_: Any) -> None:
        if classifier.is_at_step_boundary and self.stopwatch.lap():
            raise _Measured


class _OneRank(DataModule):
    """Loads the batches of rank 0 in a single process, as if all devices of the configuration took part."""

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
    """Repeats the first micro-batch of the epoch, so that training never waits for the loader."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        batch = next(loader.loader.batches(*loader.position()))  # on the host: its copy belongs to the step
        images = batch.images.clone()  # the loader reuses this memory
        if batch.images.is_pinned():
            images = images.pin_memory()
        self.close()
        return _Repeated(batch._replace(images=images), len(loader))

    def check(self, batch: Batch, epoch: int, batch_idx: int) -> None:
        pass  # the repeated batch is not the one that the sampler gives this step


class _Repeated:
    """Yields `batch` `num_batches` times per epoch."""

    def __init__(self, batch: Batch, num_batches: int):
        self.batch, self.num_batches = batch, num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch for _ in range(self.num_batches))


def time_loader(config: Config, batches: Batches) -> Timing:
    data, stopwatch = _OneRank(config, batches), Stopwatch()
    device = torch.device("cuda" if accelerator_of(config.hardware) == "gpu" else "cpu")
    trainer: Any = SimpleNamespace(
        global_step=0, global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=device)
    )
    data.trainer = trainer
    loader = data.train_dataloader()
    try:
        while True:  # over epochs: one may be shorter than the measurement
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

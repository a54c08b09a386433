"""Training loops that our fit is measured against, on the batches of our own loader: a bare loop and timm's.

step_time.py and throughput.py run them. A loop's `run(num_steps)` takes optimizer steps and waits for the device.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import timm.optim
import timm.scheduler
import timm.task
import timm.utils
import torch
from torch import Tensor, nn

from tencrop.config import Batches, Config, accelerator_of
from tencrop.data.augmentation.batch import Batch
from tencrop.models.factory import build_model
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule

LOGGER = logging.getLogger(__name__)
LOG_INTERVAL = 50  # steps; the default of timm's train.py


class Timed(Exception):
    """All steps are timed: a callback ends fit() by it, as the validation after the last step can take minutes."""


class Loop:
    """Micro-batches of our loader, epoch after epoch, on the device."""

    def __init__(self, config: Config, batches: Batches, manifest: dict[str, Any]) -> None:
        self.config, self.batches, self.manifest = config, batches, manifest
        self.device = torch.device("cuda" if accelerator_of(config.hardware) == "gpu" else "cpu")
        self.data = DataModule(config, batches)
        strategy = SimpleNamespace(root_device=self.device)
        trainer: Any = SimpleNamespace(global_step=0, global_rank=0, world_size=1, strategy=strategy)
        self.trainer = self.data.trainer = trainer
        self.stream = self.micro_batches()
        torch.manual_seed(config.seed)
        self.network = build_model(config.model, num_classes=len(manifest["classes"]), image_size=config.image_size)

    def micro_batches(self) -> Iterator[Batch]:
        loader = self.data.train_dataloader()
        while True:
            for batch in loader:
                yield self.data.transfer_batch_to_device(batch, self.device, 0)

    def autocast(self) -> Any:
        enabled = self.config.training.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()
            self.trainer.global_step += 1
        wait_for_device()

    def step(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.stream.close()  # type: ignore[attr-defined]
        self.data.close()


class BareLoop(Loop):
    """Our network, BatchNorm groups and optimizer in the shortest loop, without augmentation: the limit of a fit."""

    def __init__(self, config: Config, batches: Batches, manifest: dict[str, Any]) -> None:
        super().__init__(config, batches, manifest)
        self.parts = Classifier(
            config,
            self.network,
            statistics=manifest["statistics"],
            batches=batches,
            steps_per_epoch=self.data.steps_per_epoch,
        ).to(self.device)
        self.optimizer = self.parts.configure_optimizers()
        self.grouped: list[Any] = [layer for layer in self.parts.model.modules() if hasattr(layer, "num_filled")]

    def step(self) -> None:
        for _ in range(self.batches.accumulate_grad_batches):
            batch = next(self.stream)
            loss = nn.functional.cross_entropy(self.parts.logits(self.parts.model, batch.images), batch.labels)
            (loss / self.batches.accumulate_grad_batches).backward()
        for layer in self.grouped:  # the running statistics are not updated
            layer.num_filled = 0
        self.optimizer.step()
        self.optimizer.zero_grad()


class TimmLoop(Loop):
    """What timm's train.py (1.0.31) does per step, put together from timm's own parts, on our batches.

    The statements are those of its train_one_epoch without EMA, mixing, clipping and gradient accumulation, and of its
    PrefetchLoader, which normalizes. timm's wheel does not have the script itself.
    """

    def __init__(self, config: Config, batches: Batches, manifest: dict[str, Any]) -> None:
        super().__init__(config, batches, manifest)
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        network = self.network.to(self.device).to(memory_format=layout).train()
        smoothing = {"smoothing": config.training.label_smoothing}
        self.task = timm.task.ClassificationTask(network, criterion_kwargs=smoothing, device=self.device, verbose=False)
        optimizer = {"adamw": "adamw", "lamb": "lamb"}.get(config.optimizer.name, "sgd")
        self.optimizer = timm.optim.create_optimizer_v2(
            network, opt=optimizer, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay
        )
        self.scheduler, _ = timm.scheduler.create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=90, updates_per_epoch=self.data.steps_per_epoch
        )
        statistics = manifest["statistics"]
        self.mean, self.std = (
            torch.tensor(statistics[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std")
        )
        self.meters = {name: timm.utils.AverageMeter() for name in ("update_time", "data_time", "loss")}
        self.data_start = self.update_start = time.time()

    def step(self) -> None:
        number = self.trainer.global_step + 1
        inputs, target = self.normalized(next(self.stream))
        self.meters["data_time"].update(time.time() - self.data_start)
        with self.autocast():
            loss = self.task(inputs, target)["loss"]
        loss.backward()
        self.optimizer.step()
        self.meters["loss"].update(loss.item(), len(inputs))  # train.py waits for the device here, at every step
        self.optimizer.zero_grad()
        self.task.update_ema(step=number)
        now = time.time()
        self.meters["update_time"].update(now - self.update_start)
        self.update_start = now
        if number % LOG_INTERVAL == 0:
            self.log(number)
        self.scheduler.step_update(num_updates=number, metric=self.meters["loss"].avg)
        self.data_start = time.time()

    def log(self, number: int) -> None:
        lr = sum(group["lr"] for group in self.optimizer.param_groups) / len(self.optimizer.param_groups)
        meters = " ".join(f"{name} {meter.val:.3g} ({meter.avg:.3g})" for name, meter in self.meters.items())
        LOGGER.info(f"{number} {meters} lr {lr:.3e}")

    def normalized(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = batch.images.permute(0, 3, 1, 2).to(torch.float32).sub_(self.mean).div_(self.std)
        layout = torch.channels_last if self.config.model.channels_last else torch.contiguous_format
        return inputs.contiguous(memory_format=layout), batch.labels


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

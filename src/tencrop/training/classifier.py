"""The Lightning module: what a run learns, step by step. Read this first.

`training_step` is one micro-batch, `update_weights` one optimizer step; everything that changes what is learned
happens there or in the functions that they name. Callbacks only watch. Built by `fit`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import struct
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tencrop.config import Batches, Config, UserError
from tencrop.data.augmentation.augment import partner_labels, training_inputs
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import ColorNoise, color_noise, mean_and_std, normalize
from tencrop.data.augmentation.crops import central_crops
from tencrop.data.augmentation.erasing import is_erased, noise_table
from tencrop.data.augmentation.mixing import is_mixed
from tencrop.distributed.collectives import all_reduce
from tencrop.models.checkpoint_files import FORMAT, weights_sha256
from tencrop.models.weights import check_weights
from tencrop.training.batchnorm import set_groups, update_running_statistics
from tencrop.training.ema import update_ema
from tencrop.training.losses import dominant_labels, mixed_cross_entropy, topk_errors, with_auxiliary
from tencrop.training.monitors import Diverged, all_reduce_digest
from tencrop.training.optimizers import build_optimizer
from tencrop.training.schedules import Plateau, after_evaluation, learning_rate

NO_STEP = 2**62


class Classifier(pl.LightningModule):
    """A network in training. The state dict has its weights as `model.*` and, where there is EMA, theirs as `ema.*`."""

    mean: Tensor
    std: Tensor
    axes: Tensor
    erasing_noise: Tensor | None
    train_counts: Tensor
    val_counts: Tensor
    first_bad_step: Tensor

    def __init__(
        self, config: Config, model: nn.Module, *, statistics: dict[str, Any], batches: Batches, steps_per_epoch: int
    ):
        """statistics: those of the data's manifest; steps_per_epoch: optimizer steps."""
        super().__init__()
        self.automatic_optimization = False
        self.config, self.batches, self.steps_per_epoch = config, batches, steps_per_epoch
        self.global_batch = config.training.global_batch
        self.schedule_steps = config.training.epochs * steps_per_epoch
        self.total_steps = min(self.schedule_steps, config.training.max_steps or self.schedule_steps)
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.model = set_groups(model.to(memory_format=layout), batches)
        self.auxiliary_weight: float = getattr(model, "auxiliary_weight", 0.0)  # of each auxiliary head's loss
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if config.training.ema_decay is not None else None
        self.run_id: str | None = None  # of the run folder, set by fit: a checkpoint says whose it is
        self.selection_split = "minival" if config.training.minival_fraction > 0 else "val"

        mean, std = mean_and_std(config.normalization, statistics)
        noise = color_noise(config.augmentation.pca, statistics)
        self.color_scale = noise.scale
        self.is_mixed = is_mixed(config.augmentation.mixing)
        for name, constant in (("mean", torch.tensor(mean)), ("std", torch.tensor(std)), ("axes", noise.axes)):
            self.register_buffer(name, constant, persistent=False)
        erasing = config.augmentation.erasing
        is_noisy = is_erased(erasing) and erasing.fill == "normal"
        table = noise_table(seed=config.seed, size=config.augmentation.size) if is_noisy else None
        self.register_buffer("erasing_noise", table, persistent=False)
        # sums of loss, top-1 errors, top-5 errors and images; on the device until Metrics reads them
        self.register_buffer("train_counts", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("val_counts", torch.zeros(4, dtype=torch.float64), persistent=False)
        self.register_buffer("first_bad_step", torch.tensor(NO_STEP), persistent=False)

        self.plateau = Plateau()
        self.best_error, self.best_step, self.is_best = math.inf, 0, False
        self.validation: dict[str, float] | None = None  # the latest
        self.latest_lr = math.nan
        self.is_at_step_boundary = False

    # One micro-batch of a global batch.
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        part = batch_idx % self.batches.accumulate_grad_batches
        self.is_at_step_boundary = part == self.batches.accumulate_grad_batches - 1
        assert (
            self.global_step
            == self.current_epoch * self.steps_per_epoch + batch_idx // self.batches.accumulate_grad_batches
        )
        self.trainer.datamodule.check(batch, self.current_epoch, batch_idx)  # type: ignore[attr-defined]
        self.seed_network(self.global_step, part)

        labels, smoothing = batch.labels, self.config.training.label_smoothing
        heads = self.predict(self.model, self.training_inputs(batch))
        if self.is_mixed:
            pair = (batch.labels, partner_labels(batch), batch.mix_weights)
            losses = [mixed_cross_entropy(logits, *pair, label_smoothing=smoothing) for logits in heads]
            labels = dominant_labels(*pair)  # what the training errors are counted against
        else:
            losses = [F.cross_entropy(logits, labels, label_smoothing=smoothing) for logits in heads]
        loss = with_auxiliary(*losses, weight=self.auxiliary_weight)
        with nullcontext() if self.is_at_step_boundary else self.without_gradient_exchange():
            self.manual_backward(loss / self.batches.accumulate_grad_batches)
        self.count(self.train_counts, loss, heads[0], labels)
        self.note_bad_loss(loss)
        if self.is_at_step_boundary:
            self.update_weights(self.global_step)
        self.trainer.should_stop = self.global_step == self.total_steps  # training.max_steps, within an epoch too

    # One optimizer step, on the mean gradient over the global batch.
    def update_weights(self, step: int) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.latest_lr = self.lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = self.latest_lr
        if self.config.training.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        update_running_statistics(self.model)
        if self.ema is not None:
            assert self.config.training.ema_decay is not None
            update_ema(self.ema, self.model, decay=self.config.training.ema_decay)

    def training_inputs(self, batch: Batch) -> Tensor:
        """The augmented images as the network takes them, [B, 3, H, W]."""
        return training_inputs(
            batch,
            self.config.augmentation,
            mean=self.mean,
            std=self.std,
            noise=ColorNoise(self.axes, self.color_scale),
            erasing_noise=self.erasing_noise,
            channels_last=self.config.model.channels_last,
        )

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits [B, K] of images as they are, uint8 [B, H, W, 3]."""
        channels_last = self.config.model.channels_last
        return self.predict(network, normalize(images, self.mean, self.std, channels_last=channels_last))[0]

    def predict(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        """Logits [B, K] as numbers of the weights' type; in training, those of auxiliary heads follow.

        Under bf16 they are rounded to bfloat16 in training, and in float32 from the last layer on in eval mode
        (models/last_layer.py).
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.training.precision == "bf16"):
            outputs = network(inputs)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        return [logits.to(self.mean.dtype) for logits in heads]

    def lr_at(self, step: int) -> float:
        return learning_rate(
            self.config.schedule,
            base_lr=self.config.optimizer.lr,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.schedule_steps,
            drops=self.plateau.drops,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.config.optimizer, self.model.named_parameters())

    def seed_network(self, step: int, part: int) -> None:
        """Dropout and its like draw from torch's generator, seeded by (seed, step, micro-batch, rank): nothing of
        it needs to be kept in a checkpoint."""
        position = struct.pack("<4Q", self.config.seed, step, part, self.global_rank)
        seed = int.from_bytes(hashlib.blake2b(position, digest_size=7).digest(), "little")
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def without_gradient_exchange(self) -> Any:
        """DDP averages gradients over the ranks only in the last backward pass of a step."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if self.trainer.world_size > 1 else nullcontext()  # type: ignore[attr-defined]

    # Evaluation by the central crop. With EMA, its weights are the ones that count.
    def on_validation_epoch_start(self) -> None:
        self.val_counts.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = central_crops(batch.images, batch.sizes, size=self.config.image_size)
        logits = self.logits(self.ema or self.model, images)
        self.count(self.val_counts, F.cross_entropy(logits, batch.labels), logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.validation = self.read_counts(self.val_counts)
        error = self.validation["top1_error"]
        assert self.validation["num_images"] == self.trainer.datamodule.num_validation_images  # type: ignore[attr-defined]
        if self.config.schedule.name == "plateau":
            self.plateau = after_evaluation(self.plateau, error, schedule=self.config.schedule)
        self.is_best = self.selection_split == "minival" and error < self.best_error
        if self.is_best:
            self.best_error, self.best_step = error, self.global_step

    def on_train_epoch_start(self) -> None:
        self.is_best = False

    # Counters. They stay on the device between the steps at which someone reads them.
    def count(self, counts: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a micro-batch. Under bf16 the errors of training are those of rounded logits, whose ties count against
        the label: some tenths of a point more than in float32. Validation counts float32 logits."""
        with torch.no_grad():
            num_images = torch.full_like(loss, len(labels))
            errors = [topk_errors(logits, labels, k).sum() for k in (1, 5)]
            counts += torch.stack([loss.detach() * num_images, *errors, num_images])

    def read_counts(self, counts: Tensor) -> dict[str, float]:
        """Means over the images counted on all ranks since the last reading; waits for the device."""
        self.check_finite()
        total = all_reduce(counts)
        counts.zero_()
        loss, top1, top5, num_images = total.tolist()
        assert num_images > 0
        return {
            "loss": loss / num_images,
            "top1_error": top1 / num_images,
            "top5_error": top5 / num_images,
            "num_images": int(num_images),
        }

    def note_bad_loss(self, loss: Tensor) -> None:
        step = torch.where(torch.isfinite(loss.detach()), NO_STEP, self.global_step)
        torch.minimum(self.first_bad_step, step, out=self.first_bad_step)

    def check_finite(self, *, weights: bool = False) -> None:
        """Raises Diverged, on all ranks, where a loss since the last call was NaN or infinite, or a weight is."""
        first_bad_step = int(all_reduce(self.first_bad_step, dist.ReduceOp.MIN))
        if first_bad_step < NO_STEP:
            raise Diverged(f"the loss is NaN or infinite at step {first_bad_step}")
        if not weights:
            return
        floats = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        if not torch.stack(torch._foreach_norm(floats)).isfinite().all():  # the same on all ranks: all of them stop
            raise Diverged(f"a weight is NaN or infinite after step {self.global_step - 1}")

    @property
    def is_at_epoch_end(self) -> bool:
        return self.global_step % self.steps_per_epoch == 0

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken and validated."""
        return self.global_step == self.total_steps and not self.trainer.validating

    # Checkpoints.
    def prepare_checkpoint(self) -> None:
        """Called on all ranks before rank 0 writes: what is apart on the ranks comes together."""
        self.check_finite(weights=True)
        all_reduce_digest(self.trainer)
        total = all_reduce(self.train_counts)
        self.train_counts.copy_(total if self.global_rank == 0 else torch.zeros_like(total))

    def on_train_start(self) -> None:
        if self.global_rank != 0:  # DDP gave every rank the counts of rank 0
            self.train_counts.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tencrop"] = {
            "format": FORMAT,
            "run_id": self.run_id,
            "step": self.global_step,
            "total_steps": self.total_steps,
            "is_complete": self.is_complete,
            "model": self.config.model.name,
            "seed": self.config.seed,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "plateau": dataclasses.asdict(self.plateau),
            "best": {"top1_error": self.best_error, "step": self.best_step},
            "weights_sha256": weights_sha256(self.model.state_dict()),
            "ema_sha256": None if self.ema is None else weights_sha256(self.ema.state_dict()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["tencrop"]
        if state["total_steps"] != self.total_steps:
            raise UserError(
                f"{self.config.data.root}: the run was begun for {state['total_steps']} steps and these data make it"
                f" {self.total_steps}, so they have changed; delete the run folder or bring the data back"
            )
        source, name = str(self.trainer.ckpt_path), self.config.model.name
        check_weights(checkpoint["state_dict"], self.state_dict(), source=source, name=name)
        self.plateau = Plateau(**state["plateau"])
        self.best_error, self.best_step = state["best"]["top1_error"], state["best"]["step"]

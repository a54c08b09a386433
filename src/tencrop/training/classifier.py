"""The Lightning module: one training step, from a batch to the optimizer. Start reading here.

`training_step` is one micro-batch and `update_weights` one optimizer step. Everything that changes what is learned
happens there or in the functions that they call (docs/layout.md lists their files). Callbacks never change gradients,
weights or BatchNorm statistics. One of them, Checkpoints, calls `prepare_checkpoint`, which moves the error counts and
the data digest of all ranks to rank 0. `training/fit.py` builds the module.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencrop.config import Batches, Config, UserError
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import mean_and_std, normalize
from tencrop.data.augmentation.crops import central_crops
from tencrop.data.augmentation.mean_image import USE, central_mean, mean_image_of
from tencrop.data.augmentation.mixing import MixupCutmix, partner_labels
from tencrop.data.augmentation.pipeline import build_transforms
from tencrop.distributed.collectives import all_reduce
from tencrop.models.checkpoint_files import FORMAT, weights_sha256
from tencrop.models.weights import check_weights
from tencrop.training.batchnorm import GroupStatistics, set_exact_statistics, set_groups
from tencrop.training.compilation import CompiledNetwork
from tencrop.training.distillation import Teacher
from tencrop.training.divergence import NO_STEP, check_losses, check_weights_finite, record_nonfinite_loss
from tencrop.training.dropout import GlobalBatchDraws, draws_of
from tencrop.training.ema import MovingAverage, ema_decay
from tencrop.training.error_counts import add_errors, no_errors, read_errors
from tencrop.training.freezing import freeze
from tencrop.training.kernel_rms import kernels_of, limit_rms
from tencrop.training.losses import (
    binary_cross_entropy,
    distillation_loss,
    dominant_labels,
    mixed_cross_entropy,
    with_auxiliary,
)
from tencrop.training.monitors import all_reduce_digest
from tencrop.training.optimizers import build_optimizer
from tencrop.training.schedules import Plateau, after_evaluation, learning_rate, schedule_length


class Classifier(pl.LightningModule):
    """A network in training. The state dict holds its weights as `model.*` and, with EMA, the averages as `ema.*`."""

    mean: Tensor
    std: Tensor
    mean_image: Tensor | None
    train_counts: Tensor
    val_counts: Tensor
    first_nonfinite_step: Tensor

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        *,
        statistics: dict[str, Any],
        batches: Batches,
        steps_per_epoch: int,
        teacher: Teacher | None = None,
    ):
        """statistics: mean, std, color covariance and mean image of the data; steps_per_epoch: optimizer steps.

        With a teacher, the model returns the logits of two heads in train mode, and the second learns from the teacher.
        """
        super().__init__()
        # Lightning's automatic loop would step the optimizer by its own count of batches, and its gradient clipping,
        # accumulation and schedulers would act outside of training_step, where nobody reads them.
        self.automatic_optimization = False
        self.config, self.batches, self.steps_per_epoch = config, batches, steps_per_epoch
        self.teacher = teacher
        self.global_batch = config.training.global_batch
        # max_steps cuts the run short but does not squeeze the schedule: a run of 100 steps has the learning rates of
        # the first 100 steps of the full run.
        self.schedule_steps = schedule_length(config.training, steps_per_epoch)
        self.num_epochs = math.ceil(self.schedule_steps / steps_per_epoch)  # of the schedule; the last may be cut short
        self.total_steps = min(self.schedule_steps, config.training.max_steps or self.schedule_steps)
        # Set before BatchNorm groups and the EMA copy are made, so that both have the same memory layout.
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.model = set_groups(model.to(memory_format=layout), batches)
        self.group_statistics = GroupStatistics(self.model, num_micro_batches=batches.accumulate_grad_batches)
        self.compiled = None if config.training.compile == "none" else CompiledNetwork(self.model, config)
        is_compiled = self.compiled is not None
        self.draws = draws_of(self.model, batches, image_size=config.image_size, is_compiled=is_compiled)
        self.frozen_batch_norms = freeze(self.model, config.training.freeze, name=config.model.name)
        self.auxiliary_weight: float = getattr(model, "auxiliary_weight", 0.0)  # factor for each auxiliary head's loss
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if config.training.ema_decay is not None else None
        if self.ema is not None:
            self.frozen_batch_norms += freeze(self.ema, config.training.freeze, name=config.model.name)
        self.moving_average = None if self.ema is None else MovingAverage(self.ema, self.model)
        max_rms, name = config.training.max_rms, config.model.name
        self.limited_kernels = [] if max_rms is None else kernels_of(self.model, max_rms, name=name)
        self.run_id: str | None = None  # set by fit; stored in checkpoints so that one of another run is refused
        self.selection_split = "minival" if config.training.minival_fraction > 0 else "val"

        self.transforms = build_transforms(config, statistics)
        self.is_mixed = MixupCutmix.is_on(config.augmentation)
        for name, values in zip(("mean", "std"), mean_and_std(config.normalization, statistics), strict=True):
            # Not persistent: they follow from the configuration and the data, and the state dict stays loadable as
            # plain weights. on_save_checkpoint records them as numbers.
            self.register_buffer(name, torch.tensor(values), persistent=False)
        image = mean_image_of(config, statistics, size=config.augmentation.size)
        self.register_buffer("mean_image", image, persistent=False)
        # train_counts is persistent because a checkpoint may fall between two rows of metrics.jsonl.
        self.register_buffer("train_counts", no_errors())
        self.register_buffer("val_counts", no_errors(), persistent=False)
        self.register_buffer("first_nonfinite_step", torch.tensor(NO_STEP), persistent=False)

        self.plateau = Plateau()
        self.best_error, self.best_step, self.is_best = math.inf, 0, False
        self.validation: dict[str, float] | None = None  # of the latest validation
        self.latest_lr = math.nan
        self.is_at_step_boundary = False

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets the name of the running hook some 30 times a step, and nn.Module first asks at length whether a
        # value is a weight, a buffer or a layer.
        if isinstance(value, str | int | float | None) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        for layer in self.frozen_batch_norms:
            layer.eval()
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Assert that this is the micro-batch of the next step, and add it to the data digest."""
        num_parts = self.batches.accumulate_grad_batches
        step = self.current_epoch * self.steps_per_epoch + batch_idx // num_parts
        assert self.global_step == step, "Lightning's batch counter and the optimizer steps disagree"
        # A resume that replays or skips a batch fails here, instead of training on the wrong data.
        self.trainer.datamodule.check(batch, self.current_epoch, batch_idx)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Forward and backward pass of one micro-batch; after the last one of a global batch, an optimizer step."""
        step, part = self.global_step, batch_idx % self.batches.accumulate_grad_batches
        self.is_at_step_boundary = part == self.batches.accumulate_grad_batches - 1
        labels, training, smoothing = batch.labels, self.config.training, self.config.training.label_smoothing
        inputs = self.training_inputs(batch)
        with self.draws_for(step, part):
            heads = self.predict(self.compiled or self.model, inputs)
        self.group_statistics.collect()
        of_labels = heads if self.teacher is None else heads[:1]  # the others learn from the teacher
        pair = (partner_labels(batch), batch.params["mix_weights"]) if self.is_mixed else None
        if training.loss == "bce":
            bce = partial(binary_cross_entropy, label_smoothing=smoothing, threshold=training.bce_threshold)
            losses = [bce(logits, labels, *(pair or ())) for logits in of_labels]
        elif pair is not None:
            losses = [mixed_cross_entropy(logits, labels, *pair, label_smoothing=smoothing) for logits in of_labels]
        else:
            losses = [F.cross_entropy(logits, labels, label_smoothing=smoothing) for logits in of_labels]
        if pair is not None:
            labels = dominant_labels(labels, *pair)  # training errors are counted against these
        loss = losses[0] if len(losses) == 1 else with_auxiliary(*losses, weight=self.auxiliary_weight)
        if self.teacher is not None:
            teacher_labels = self.teacher.labels(inputs, mean=self.mean, std=self.std)
            loss = distillation_loss(loss, heads[1], teacher_labels, alpha=training.distill.alpha)
        with nullcontext() if self.is_at_step_boundary else self.without_gradient_sync():
            # All micro-batches of a step have the same size, so the mean of their means is the global batch's mean.
            self.manual_backward(loss / self.batches.accumulate_grad_batches)
        if self.is_at_step_boundary:
            self.update_weights(step)
        # What follows counts and does not learn.
        add_errors(self.train_counts, loss, heads[0], labels)
        record_nonfinite_loss(self.first_nonfinite_step, loss, step=step)
        if self.global_step == self.total_steps and self.config.training.precise_bn is not None:
            self.set_exact_statistics()  # before the last validation, which is to see them
        # Not Trainer(max_steps=...): Lightning would end the fit without the last validation.
        self.trainer.should_stop = self.global_step == self.total_steps

    def update_weights(self, step: int) -> None:
        """One optimizer step, on the mean gradient over the global batch."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        # A function of the step (and of the plateau's drops so far). A torch scheduler would keep a counter of its own.
        self.latest_lr = self.lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = self.latest_lr * group.get("lr_scale", 1.0)  # of layer_decay
        if self.config.training.clip_grad_norm is not None:
            # After DDP's reduction, so every rank clips the same global gradient by the same factor.
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if self.config.training.max_rms is not None:
            limit_rms(self.limited_kernels, self.config.training.max_rms)
        # Before the EMA, which averages the running statistics as well as the weights.
        self.group_statistics.update()
        if self.moving_average is not None:
            assert self.config.training.ema_decay is not None
            warmup = self.config.training.ema_warmup
            decay = ema_decay(self.config.training.ema_decay, num_updates=step + 1, warmup=warmup)
            self.moving_average.update(decay=decay)

    def set_exact_statistics(self) -> None:
        """Replace the running statistics (of the EMA, too) by exact means over `training.precise_bn` training images.

        The images are the first of the next epoch, with its augmentation.
        """

        def forward(network: nn.Module, batch: Batch, number: int) -> None:
            inputs = self.training_inputs(batch)
            with self.draws_for(self.total_steps, number):  # dropout stays on as in training
                self.predict(network, inputs)

        epoch = -(-self.total_steps // self.steps_per_epoch)
        images = self.trainer.datamodule.precise_bn_batches(epoch, self.device)  # type: ignore[attr-defined]
        networks = [self.model] if self.ema is None else [self.model, self.ema]
        set_exact_statistics(networks, images, forward, accumulate_grad_batches=self.batches.accumulate_grad_batches)

    def training_inputs(self, batch: Batch) -> Tensor:
        """Augmented and normalized images, float [B, 3, H, W], from uint8 pixels and the parameters in the batch."""
        inputs = batch.images
        for transform in self.transforms:
            inputs = transform(inputs, batch.params)
        layout = torch.channels_last if self.config.model.channels_last else torch.contiguous_format
        return inputs.contiguous(memory_format=layout)

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, H, W, 3], central crops, normalized but not augmented."""
        channels_last, image = self.config.model.channels_last, self.mean_image
        choice = self.config.normalization
        mean = self.mean if image is None else central_mean(image, choice, size=images.shape[1])
        return self.predict(network, normalize(images, mean, self.std, channels_last=channels_last))[0]

    def predict(self, network: Callable[[Tensor], Any], inputs: Tensor) -> list[Tensor]:
        """Logits [B, K] in the weights' dtype, in a list; in train mode the logits of auxiliary heads follow.

        With precision bf16, training logits have been rounded to bfloat16. In eval mode the last layer computes in
        float32 (models/last_layer.py).
        """
        # Autocast is here and not in Trainer(precision=...), so that augmentation and normalization stay in float32. It
        # needs no gradient scaler: bfloat16 has float32's exponent range, unlike float16.
        autocast: AbstractContextManager[Any] = nullcontext()
        if self.config.training.precision == "bf16":
            autocast = torch.autocast(self.device.type, torch.bfloat16)
        with autocast:
            outputs = network(inputs)
        # The loss is computed in the weights' dtype (float32, and float64 in some tests), never in bfloat16.
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        return [logits.to(self.mean.dtype) for logits in heads]

    def lr_at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        return learning_rate(
            self.config.schedule,
            base_lr=self.config.optimizer.lr,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.schedule_steps,
            drops=self.plateau.drops,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.config.optimizer, self.model)

    def draws_for(self, step: int, number: int) -> AbstractContextManager[Any]:
        """Seed what the network draws (dropout, stochastic depth) in micro-batch `number` of a step, whose forward pass
        must run in the returned context.

        A function of the seed, the step and the place in the global batch: no generator state is in a checkpoint, and
        samples get the same draws on every layout, unless the network's draws are separate (training/dropout.py).
        """
        batch, part = divmod(number, self.batches.accumulate_grad_batches)  # in training, a step has one global batch
        place = (number, self.global_rank) if self.draws == "separate" else (batch, 0)
        # A hash, because the sum of the numbers would give neighboring steps and ranks the same masks.
        position = struct.pack("<4Q", self.config.seed, step, *place)
        seed = int.from_bytes(hashlib.blake2b(position, digest_size=7).digest(), "little")
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)  # sets a host-side state; does not wait for the device
        if self.draws != "global":
            return nullcontext()
        size = self.batches.micro_batch
        first_row = self.global_rank * self.batches.per_device + part * size
        return GlobalBatchDraws(global_batch=self.global_batch, micro_batch=size, first_row=first_row)

    def without_gradient_sync(self) -> Any:
        """Let DDP average gradients over the ranks only in the last backward pass of a step.

        Averaging in each micro-batch would give the same sum for accumulate_grad_batches times the traffic.
        """
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if self.trainer.world_size > 1 else nullcontext()  # type: ignore[attr-defined]

    # Validation on the central crop. With EMA, the averaged weights are validated and select the best checkpoint.
    def on_validation_epoch_start(self) -> None:
        self.val_counts.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = central_crops(batch.images, batch.sizes, size=self.config.image_size)
        logits = self.logits(self.ema or self.model, images)
        add_errors(self.val_counts, F.cross_entropy(logits, batch.labels), logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.validation = self.read_counts(self.val_counts)
        error = self.validation["top1_error"]
        # Ranks get parts of unequal length and no image twice. Padding (as in DistributedSampler) would count some
        # twice.
        assert self.validation["num_images"] == self.trainer.datamodule.num_validation_images  # type: ignore[attr-defined]
        if self.config.schedule.name == "plateau":
            self.plateau = after_evaluation(self.plateau, error, schedule=self.config.schedule)
        # Only on a minival split from the training images: choosing by the val split would select on the test data.
        self.is_best = self.selection_split == "minival" and error < self.best_error
        if self.is_best:
            self.best_error, self.best_step = error, self.global_step

    def on_train_epoch_start(self) -> None:
        self.is_best = False

    def read_counts(self, counts: Tensor) -> dict[str, float]:
        """Means over the images that all ranks have counted since the last call. Waits for the device; resets counts.

        All ranks must call this at the same step. Raises Diverged if a loss so far was NaN or infinite.
        """
        check_losses(self.first_nonfinite_step)
        return read_errors(counts)

    @property
    def is_at_epoch_end(self) -> bool:
        return self.global_step % self.steps_per_epoch == 0

    @property
    def is_complete(self) -> bool:
        """Whether all steps have been taken and the last one has been validated."""
        return self.global_step == self.total_steps and not self.trainer.validating

    # Checkpoints. Only rank 0 writes, so what differs between ranks is summed on rank 0 and zeroed elsewhere.
    def prepare_checkpoint(self) -> None:
        """Sum the training counts and the data digest of all ranks on rank 0, and check that all weights are finite.

        All ranks must call this before rank 0 writes a checkpoint. It changes no weight and no running statistic, so
        the number of checkpoints does not affect what is learned.
        """
        check_losses(self.first_nonfinite_step)
        check_weights_finite(self.model, step=self.global_step - 1)
        all_reduce_digest(self.trainer)
        total = all_reduce(self.train_counts)
        self.train_counts.copy_(total if self.global_rank == 0 else torch.zeros_like(total))

    def on_fit_start(self) -> None:
        if self.teacher is not None:  # no submodule, so Lightning does not move it
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        # Every rank has loaded the checkpoint, whose counts are the sum over all ranks: only rank 0 may keep them.
        if self.global_rank != 0:
            self.train_counts.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        image = self.mean_image
        checkpoint["tencrop"] = {
            "format": FORMAT,
            "run_id": self.run_id,
            "step": self.global_step,
            "total_steps": self.total_steps,
            "is_complete": self.is_complete,
            "model": self.config.model.name,
            "seed": self.config.seed,
            # With mean and std a checkpoint can be evaluated without the data it was trained on.
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            **({} if image is None else {"mean_image": image.float().cpu(), USE: self.config.normalization.mean}),
            "plateau": dataclasses.asdict(self.plateau),
            "best": {"top1_error": self.best_error, "step": self.best_step},
            "weights_sha256": weights_sha256(self.model.state_dict()),
            "ema_sha256": None if self.ema is None else weights_sha256(self.ema.state_dict()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["tencrop"]
        if state["total_steps"] != self.total_steps:
            raise UserError(
                f"{self.config.data.root}: the run was started for {state['total_steps']} steps, but this data gives"
                f" {self.total_steps}, so the data has changed; delete the run folder or restore the data"
            )
        source, name = str(self.trainer.ckpt_path), self.config.model.name
        check_weights(checkpoint["state_dict"], self.state_dict(), source=source, name=name)
        # Lightning itself restores the step, the optimizer and the state of the callbacks.
        self.plateau = Plateau(**state["plateau"])
        self.best_error, self.best_step = state["best"]["top1_error"], state["best"]["step"]

"""Train a run in its folder, resume it from its last checkpoint, or report that it is complete.

The command `train` calls this. `build_trainer` switches off everything in Lightning that could change what is learned,
or make the host wait for the device.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tencrop.config import Batches, Config, UserError, accelerator_of, is_deterministic
from tencrop.config.launcher import is_first_process, launched
from tencrop.config.recipe_rules import check_length, check_ramp
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.augmentation.progressive import training_sizes
from tencrop.data.sampling.sampler import check_rescaled
from tencrop.distributed.cluster import cluster_environment
from tencrop.distributed.gpus import check_num_gpus
from tencrop.models.checkpoint_files import run_manifest, weights_sha256
from tencrop.models.factory import build_model, check_image_size
from tencrop.signals import INTERRUPTED
from tencrop.training.batchnorm import check_single_samples
from tencrop.training.checkpoints import (
    LAST,
    REFUSED,
    AtomicCheckpointIO,
    Checkpoints,
    LoadedCheckpoint,
    latest_valid_checkpoint,
    set_aside,
)
from tencrop.training.classifier import Classifier
from tencrop.training.compilation import NotCompiled, check_compiler
from tencrop.training.data_module import DataModule, validation_protocol
from tencrop.training.determinism import check_deterministic
from tencrop.training.distillation import read_teacher, set_distilled_training
from tencrop.training.divergence import Diverged
from tencrop.training.initial_weights import InitialWeights, apply_initial_weights
from tencrop.training.layer_decay import check_layer_decay
from tencrop.training.lightning_loop import skip_unused_work
from tencrop.training.monitors import Interrupted, Interruption, Metrics, Pace
from tencrop.training.out_of_memory import explaining_out_of_memory
from tencrop.training.precision import set_precision
from tencrop.training.progress import ProgressBar

EXIT_CODES = {"complete": 0, "interrupted": INTERRUPTED, "diverged": 1}


@dataclass(frozen=True)
class FitResult:
    """The outcome of a training run."""

    status: str  # complete | interrupted | diverged
    message: str
    checkpoint: Path  # last.ckpt; may not exist if the run ended before its first checkpoint
    step: int  # optimizer steps taken
    weights_sha256: str  # of the network at this step
    ema_sha256: str | None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]


def fit(
    data: DataModule,
    classifier: Classifier,
    *,
    run_dir: Path,
    logger: Logger | None = None,
    callbacks: Iterable[Callback] = (),
) -> FitResult:
    """Train `classifier` on `data` (both from `build`), from the start or from run_dir/checkpoints/last.ckpt.

    If last.ckpt is damaged or belongs to another run, prints the reason, renames the file to refused.ckpt and resumes
    from previous.ckpt. Raises UserError for a checkpoint that does not fit the configuration, and if the first step
    needs more memory than the GPU has. If the run is interrupted or diverges, and this command started the ranks itself
    (distributed/launch.py), only rank 0 returns the outcome; the other ranks exit here with code 0.
    """
    config, last = classifier.config, run_dir / "checkpoints" / LAST
    classifier.run_id = run_manifest(run_dir).get("run_id")
    checkpoint = latest_valid_checkpoint(run_dir)
    start = None if checkpoint is None else str(checkpoint.path)
    first_step = 0 if checkpoint is None else checkpoint.content["tencrop"]["step"]
    if checkpoint is not None:
        _set_aside_refused(last, checkpoint)
    interruption = Interruption(agree_every_steps=config.log_every_steps)
    metrics = Metrics(run_dir / "metrics.jsonl", every_steps=config.log_every_steps)
    checkpoints = Checkpoints(last.parent, every_steps=config.checkpoint_every_steps, interruption=interruption)
    # Order matters: Metrics reads the counters before ProgressBar shows them, and before Checkpoints saves num_rows.
    watchers = [metrics, Pace(metrics), ProgressBar(metrics), *callbacks, checkpoints]
    status, message = "complete", "complete"
    with interruption, quiet_lightning():
        trainer = build_trainer(
            config,
            num_epochs=classifier.num_epochs,
            run_dir=run_dir,
            logger=logger,
            callbacks=watchers,
            checkpoint=checkpoint,
        )
        del checkpoint  # Lightning holds it now; a second reference would keep the whole state in memory
        try:
            with explaining_out_of_memory(config, classifier, trainer, first_step=first_step):
                trainer.fit(classifier, data, ckpt_path=start)
        except Interrupted as reason:
            status, message = "interrupted", str(reason)
        except NotCompiled:
            # Ctrl-C and scancel signal the whole process group, and with it the compilers that torch runs.
            if not interruption.is_requested:
                raise
            status, message = "interrupted", "interrupted while torch compiled the network; the same command continues"
        except Diverged as reason:
            saved = last if last.exists() else start
            state = f"{saved} is from before that" if saved else "there is no checkpoint yet"
            remedy = "try a lower optimizer.lr, a longer warm-up or training.clip_grad_norm"
            status, message = "diverged", f"{reason}; {state}; {remedy}"
        finally:
            # The loader's threads and the open metrics.jsonl would outlive an exception otherwise.
            data.close()
            metrics.close()
    if status != "complete" and not trainer.is_global_zero and launched() is None:
        sys.exit(0)
    if status == "complete":
        # A signal during the last steps comes too late to interrupt training, but must still stop the evaluation.
        interruption.pass_on()
    return _result(last, classifier, trainer.global_step, status, message)


def build(
    config: Config, *, batches: Batches, manifest: dict[str, Any], initial: InitialWeights | None = None
) -> tuple[DataModule, Classifier]:
    """Build the data module and the Lightning module, with weights initialized from the seed; write no files.

    initial: weights that replace those of the seed, as training.init says; None if there are none, or the run resumes.
    Raises UserError if the hardware, the data, the model or these weights do not fit the configuration.
    """
    # These checks come before the run folder is created, so that a typo leaves no folder behind.
    check_num_gpus(config.hardware, config.hardware.devices)
    set_precision(config.training.precision)
    data = DataModule(config, batches)
    _refuse_unfit_images(config, data)
    # Seeds the initial weights. All ranks draw the same weights, and DDP broadcasts those of rank 0 anyway.
    torch.manual_seed(config.seed)
    num_classes = len(manifest["classes"])
    model = build_model(config.model, num_classes=num_classes, image_size=config.image_size)
    if initial is not None:
        apply_initial_weights(model, initial, config.training.init, model=config.model, num_classes=num_classes)
    check_layer_decay(config.optimizer, model, name=config.model.name)
    teacher = None
    if config.training.distill.teacher is not None:
        teacher = read_teacher(config, manifest["classes"])
        set_distilled_training(model, name=config.model.name)
    check_deterministic(model, config)
    check_compiler(config)
    if config.training.steps is not None:
        num_epochs = config.training.steps / data.steps_per_epoch
        budget = f"training.steps={config.training.steps}, which are {num_epochs:.3g} epochs"
        check_length(config.schedule, num_epochs=num_epochs, budget=budget)
        check_ramp(config.augmentation, num_epochs=num_epochs, budget=budget)
    _check_training_sizes(model, config)
    classifier = Classifier(
        config,
        model,
        statistics=data.train_split.statistics,
        batches=batches,
        steps_per_epoch=data.steps_per_epoch,
        teacher=teacher,
    )
    return data, classifier


def _check_training_sizes(model: nn.Module, config: Config) -> None:
    """Raise UserError for a size of training crops that the network does not take; build_model checks image_size."""
    for size in training_sizes(config.augmentation):
        key = "augmentation.size" if size == config.augmentation.size else "augmentation.progressive"
        if size != config.image_size:
            check_image_size(model, config.model.name, size, key=key, for_training=True)
    if config.model.bn_group == 1:
        check_single_samples(model, config.model.name, min(training_sizes(config.augmentation)))


def _refuse_unfit_images(config: Config, data: DataModule) -> None:
    """Raise UserError if a validation image is smaller than the crop, or would be too large after rescaling.

    With short_side=null, images are validated at their stored size, which may be smaller than image_size.
    """
    sides = data.val_split.stored_sizes[data.val_index].min(1)
    sizes = evaluation_plan(data.val_index, data.val_split.stored_sizes, protocol=validation_protocol(config)).sizes
    key = f"short_side={'null' if config.short_side is None else config.short_side}"
    check_rescaled(sizes, lambda position: data.val_split.names(data.val_index[position]), key=key)
    if config.short_side is None and sides.min() < config.image_size:
        name = data.val_split.names(data.val_index[sides.argmin()])
        raise UserError(
            f"short_side=null: {name} has a shorter side of {sides.min()} pixels, less than"
            f" image_size={config.image_size}; set short_side={config.image_size} or more"
        )


def completed_fit(run_dir: Path) -> FitResult | None:
    """Return the result of a run that has taken all its steps; None for a new run or a run with steps left.

    For a run with steps left, a last.ckpt that is damaged or belongs to another run is renamed to refused.ckpt here.
    That must happen before the manifest is updated to say that the run is training again: the update removes the hash
    of the final weights from the manifest, and without it `fit`, or another rank, would accept the refused file.
    Raises UserError if last.ckpt is damaged or belongs to another run, and previous.ckpt is not valid either.
    """
    checkpoint, last = latest_valid_checkpoint(run_dir), run_dir / "checkpoints" / LAST
    if checkpoint is None:
        return None
    if not checkpoint.content["tencrop"]["is_complete"]:
        if last.exists() and os.access(last.parent, os.W_OK):
            _set_aside_refused(last, checkpoint)
        return None
    facts = checkpoint.content["tencrop"]
    message = "already complete" if checkpoint.refusal is None else f"already complete ({checkpoint.refusal})"
    return FitResult("complete", message, checkpoint.path, facts["step"], facts["weights_sha256"], facts["ema_sha256"])


def _set_aside_refused(last: Path, checkpoint: LoadedCheckpoint) -> None:
    """Rename a refused last.ckpt, and print why it was refused: on rank 0 only, and only once."""
    if checkpoint.refusal is None or (not last.exists() and last.with_name(REFUSED).exists()):
        return
    set_aside(last.parent.parent)
    if is_first_process():
        print(checkpoint.refusal, file=sys.stderr)


def _result(last: Path, classifier: Classifier, step: int, status: str, message: str) -> FitResult:
    ema_sha256 = None if classifier.ema is None else weights_sha256(classifier.ema.state_dict())
    return FitResult(status, message, last, step, weights_sha256(classifier.model.state_dict()), ema_sha256)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips and its warnings about its own internals."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The first appears on a cluster's login node, the second with Lightning 2.6 and torch 2.15.
            warnings.filterwarnings("ignore", r".*The `srun` command is available")
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _ddp(*, exactly: bool) -> DDPStrategy:
    # Keep DDP from overwriting every rank's buffers with rank 0's in each forward pass: training/batchnorm.py averages
    # the running statistics over the ranks, so they are equal already. The option has another name from torch 2.15 on.
    names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    # gradient_as_bucket_view saves the memory for a second copy of all gradients, and the time of copying.
    options: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
    return (_ExactDDPStrategy if exactly else DDPStrategy)(**options)


class _ExactDDPStrategy(DDPStrategy):
    """DDP whose gradient sums round the same way in a resumed run as in a run that never stopped.

    DDP rebuilds its buckets after the first step of the process, in the order in which gradients became ready. With
    four or more ranks, the position of a number in its bucket determines the order in which the ranks' values are
    added. A resumed run rebuilds its buckets at a later step than an uninterrupted one, and would round differently
    until then. Here the buckets are rebuilt once, before the first step, in the order of the parameters. The cost:
    communication no longer overlaps with the backward pass, because the first bucket holds the gradients of the first
    layers, which are ready last.
    """

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        wrapped = super()._setup_model(model)
        # Private torch API, hence the assertion: if a torch version ignores this call, the run must stop.
        wrapped.reducer._push_all_rebuilt_params()
        assert wrapped.reducer._rebuild_buckets(), "torch has rebuilt the buckets already"
        return wrapped


def build_trainer(
    config: Config,
    *,
    num_epochs: int,
    run_dir: Path,
    logger: Logger | None,
    callbacks: Iterable[Callback],
    checkpoint: LoadedCheckpoint | None,
) -> Trainer:
    """Build Lightning's Trainer for this hardware, without its own sampler, progress bar, checkpoints and requeueing.

    checkpoint: the one that `fit` will resume from, already in memory.
    """
    hardware = config.hardware
    accelerator = accelerator_of(hardware)
    exactly = is_deterministic(config)
    # In deterministic mode, torch also fills every new tensor, in case an operation reads uninitialized memory. No
    # operation here does, and the filling costs one kernel launch per allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    distributed = hardware.devices * hardware.nodes > 1
    trainer = Trainer(
        accelerator=accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_ddp(exactly=exactly) if distributed else "auto",
        plugins=[AtomicCheckpointIO(checkpoint), cluster_environment()],
        deterministic=exactly,
        benchmark=not exactly,  # cuDNN's benchmark may choose algorithms that round differently in each process
        precision="32-true",  # Classifier.predict applies autocast itself
        max_epochs=num_epochs,
        max_steps=-1,  # Classifier stops at total_steps itself, after a validation
        check_val_every_n_epoch=config.training.evaluate_every_epochs,
        num_sanity_val_steps=0,  # Lightning would validate a few batches before training
        use_distributed_sampler=False,  # the data module already splits each global batch among the ranks
        logger=logger if logger is not None else False,
        log_every_n_steps=1,  # the callback Metrics decides when to log
        callbacks=list(callbacks),
        enable_checkpointing=False,  # replaced by training/checkpoints.py
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    # `Interruption` handles signals instead of Lightning. Lightning would start a collective operation inside a signal
    # handler. From 2.5.2 on it would also broadcast a flag at every step of a multi-rank run, and wait for the device.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # Always validate after the last step. If evaluate_every_epochs does not divide the number of epochs, Lightning
    # would not validate the final weights, so they could not become best.ckpt.
    should_validate = epoch_loop._should_check_val_epoch
    epoch_loop._should_check_val_epoch = lambda: (  # type: ignore[method-assign]
        should_validate() or trainer.global_step == trainer.lightning_module.total_steps
    )
    skip_unused_work(trainer)
    return trainer

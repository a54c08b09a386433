"""Train a run in its folder, resume it from its last checkpoint, or report that it is complete.

Everything in Lightning that could change what is learned, or wait for the device, is switched off in `build_trainer`.
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
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.sampling.sampler import check_rescaled
from tencrop.distributed.cluster import cluster_environment
from tencrop.models.checkpoint_files import run_manifest, weights_sha256
from tencrop.models.factory import build_model
from tencrop.signals import INTERRUPTED
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
from tencrop.training.data_module import DataModule, validation_protocol
from tencrop.training.determinism import check_deterministic
from tencrop.training.monitors import Diverged, Interrupted, Interruption, Metrics, Pace
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
    weights_sha256: str  # of the network in its present state
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
    """Train what `build` returned, or resume at exactly the step of run_dir/checkpoints/last.ckpt.

    If last.ckpt is damaged or belongs to another run, training resumes from previous.ckpt, prints why, and keeps the
    refused file as refused.ckpt. Raises UserError for a checkpoint that does not fit the configuration. If this command
    started the ranks itself (distributed/launch.py) and the run is interrupted or diverges, all ranks but the first
    exit here with code 0, and the first reports the outcome.
    """
    config, last = classifier.config, run_dir / "checkpoints" / LAST
    classifier.run_id = run_manifest(run_dir).get("run_id")
    found = latest_valid_checkpoint(run_dir)
    start = None if found is None else str(found.path)
    if found is not None:
        _set_aside_refused(last, found)
    interruption = Interruption(agree_every_steps=config.log_every_steps)
    metrics = Metrics(run_dir / "metrics.jsonl", every_steps=config.log_every_steps)
    checkpoints = Checkpoints(last.parent, every_steps=config.checkpoint_every_steps, interruption=interruption)
    # Order matters: Metrics reads the counters before ProgressBar shows them, and before Checkpoints saves num_rows.
    watchers = [metrics, Pace(metrics), ProgressBar(metrics), *callbacks, checkpoints]
    status, message = "complete", "complete"
    with interruption, _quiet_lightning():
        trainer = build_trainer(config, run_dir=run_dir, logger=logger, callbacks=watchers, found=found)
        del found  # Lightning holds it now; a second reference would keep the whole state in memory
        try:
            trainer.fit(classifier, data, ckpt_path=start)
        except Interrupted as reason:
            status, message = "interrupted", str(reason)
        except Diverged as reason:
            kept = last if last.exists() else start
            kept = f"{kept} is from before that" if kept else "there is no checkpoint yet"
            remedy = "try a lower optimizer.lr, a longer warm-up or training.clip_grad_norm"
            status, message = "diverged", f"{reason}; {kept}; {remedy}"
        finally:
            # The loader's threads and the open metrics.jsonl would outlive an exception otherwise.
            data.close()
            metrics.close()
    if status != "complete" and not trainer.is_global_zero and launched() is None:
        sys.exit(0)
    if status == "complete":
        # A signal during the last steps found no checkpoint left to write. It still applies to the evaluation after
        # this.
        interruption.pass_on()
    return _result(last, classifier, trainer.global_step, status, message)


def build(config: Config, *, batches: Batches, manifest: dict[str, Any]) -> tuple[DataModule, Classifier]:
    """The data module and the Lightning module, with weights initialized from the seed. Writes nothing.

    Raises UserError if the hardware, the data or the model do not fit the configuration.
    """
    # All refusals come before the run folder is made, so that a typo leaves no folder behind.
    _refuse_missing_gpus(config)
    set_precision(config.training.precision)
    data = DataModule(config, batches)
    _refuse_unfit_images(config, data)
    # The seed of the initial weights. All ranks draw the same ones, and DDP broadcasts those of rank 0.
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=len(manifest["classes"]), image_size=config.image_size)
    check_deterministic(model, config)
    classifier = Classifier(
        config, model, statistics=manifest["statistics"], batches=batches, steps_per_epoch=data.steps_per_epoch
    )
    return data, classifier


def _refuse_unfit_images(config: Config, data: DataModule) -> None:
    """Raises UserError if a validation image is smaller than the crop, or grows too large when it is rescaled.

    With short_side=null images are validated at their stored size, so one may be smaller than image_size.
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


def _refuse_missing_gpus(config: Config) -> None:
    hardware = config.hardware
    if accelerator_of(hardware) == "gpu" and torch.cuda.device_count() < hardware.devices:
        raise UserError(
            f"hardware.devices={hardware.devices}: torch sees {torch.cuda.device_count()} GPUs here;"
            " choose fewer, or hardware=cpu"
        )


def completed_fit(run_dir: Path) -> FitResult | None:
    """The result of a run that has taken all its steps; None for a run with steps left.

    For a run with steps left, a last.ckpt that is damaged or of another run is set aside as refused.ckpt here, before
    the manifest records that the run is in training again. From then on the manifest no longer states which weights a
    complete checkpoint must have, and another rank, or `fit`, would accept the file that is refused here.
    Raises UserError if last.ckpt is damaged or of another run and previous.ckpt cannot replace it.
    """
    found, last = latest_valid_checkpoint(run_dir), run_dir / "checkpoints" / LAST
    if found is None:
        return None
    if not found.content["tencrop"]["is_complete"]:
        if last.exists() and os.access(last.parent, os.W_OK):
            _set_aside_refused(last, found)
        return None
    facts = found.content["tencrop"]
    message = "already complete" if found.refusal is None else f"already complete ({found.refusal})"
    return FitResult("complete", message, found.path, facts["step"], facts["weights_sha256"], facts["ema_sha256"])


def _set_aside_refused(last: Path, found: LoadedCheckpoint) -> None:
    """Rename a refused last.ckpt, and print why it was refused; only one rank does so, and only once."""
    if found.refusal is None or (not last.exists() and last.with_name(REFUSED).exists()):
        return
    set_aside(last.parent.parent)
    if is_first_process():
        print(found.refusal, file=sys.stderr)


def _result(last: Path, classifier: Classifier, step: int, status: str, message: str) -> FitResult:
    ema_sha256 = None if classifier.ema is None else weights_sha256(classifier.ema.state_dict())
    return FitResult(status, message, last, step, weights_sha256(classifier.model.state_dict()), ema_sha256)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advertisements and its warnings about its own internals."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The first comes on a cluster's login node, the second from Lightning 2.6 with torch 2.15.
            warnings.filterwarnings("ignore", r".*The `srun` command is available")
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _ddp(*, exactly: bool) -> DDPStrategy:
    # DDP would overwrite every rank's buffers with those of rank 0 in each forward pass. Here running statistics are
    # the mean over the ranks (training/batchnorm.py) and equal already. The switch has another name from torch 2.15 on.
    names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    # Gradients as views of the buckets: saves one copy of all gradients, in memory and in time.
    options: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
    return (_ExactDDPStrategy if exactly else DDPStrategy)(**options)


class _ExactDDPStrategy(DDPStrategy):
    """DDP whose gradient sums round the same way in a resumed run as in a run that never stopped.

    DDP rebuilds its buckets after the first step, in the order in which gradients became ready. With four or more
    ranks, the position of a number in a bucket decides in which order the ranks' values are added, so a resumed run,
    whose first step comes later, would round differently. Here the buckets are built once, before the first step, in
    the order of the parameters. The cost: the first layers' gradients are ready last but are in the first bucket, so
    communication no longer overlaps with the backward pass.
    """

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        wrapped = super()._setup_model(model)
        # Private torch API, so the assertion: a torch in which this does nothing must stop the run.
        wrapped.reducer._push_all_rebuilt_params()
        assert wrapped.reducer._rebuild_buckets(), "torch has rebuilt the buckets already"
        return wrapped


def build_trainer(
    config: Config,
    *,
    run_dir: Path,
    logger: Logger | None,
    callbacks: Iterable[Callback],
    found: LoadedCheckpoint | None,
) -> Trainer:
    """Lightning's Trainer for this hardware, without its own samplers, progress bars, checkpoints and job requeueing.

    found: the checkpoint that `fit` will tell it to resume from, already in memory.
    """
    hardware = config.hardware
    accelerator = accelerator_of(hardware)
    exactly = is_deterministic(config)
    # In deterministic mode torch also fills every new tensor, in case an operation reads memory it did not write. None
    # here does, and the filling costs a kernel for each allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    distributed = hardware.devices * hardware.nodes > 1
    trainer = Trainer(
        accelerator=accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_ddp(exactly=exactly) if distributed else "auto",
        plugins=[AtomicCheckpointIO(found), cluster_environment()],
        deterministic=exactly,
        benchmark=not exactly,  # cuDNN's timing may choose another algorithm, with other rounding, in every process
        precision="32-true",  # autocast is in Classifier.predict
        max_epochs=config.training.epochs,
        max_steps=-1,  # Classifier stops at total_steps itself, after a validation
        check_val_every_n_epoch=config.training.evaluate_every_epochs,
        num_sanity_val_steps=0,  # would validate untrained weights before step 0
        use_distributed_sampler=False,  # the data module gives every rank its part of each global batch
        logger=logger if logger is not None else False,
        log_every_n_steps=1,  # Metrics decides when to log
        callbacks=list(callbacks),
        enable_checkpointing=False,  # Lightning's ModelCheckpoint; ours is in training/checkpoints.py
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    # `Interruption` handles signals. Lightning would start a collective operation from inside a signal handler and,
    # from 2.5.2 on, broadcast a flag in every step of a multi-rank run, which waits for the device.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # Always validate after the last step. Lightning skips the last epoch if evaluate_every_epochs does not divide the
    # number of epochs, and the final weights could then not be chosen as the best checkpoint.
    is_due = epoch_loop._should_check_val_epoch
    epoch_loop._should_check_val_epoch = lambda: (  # type: ignore[method-assign]
        is_due() or trainer.global_step == trainer.lightning_module.total_steps
    )
    return trainer

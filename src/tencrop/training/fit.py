"""Trains a run in its folder, or continues it, or finds it complete. Called by train.py.

Everything of Lightning that could change what is learned, or wait for the device, is switched off here.
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
from tencrop.training.checkpoints import LAST, REFUSED, AtomicCheckpointIO, Checkpoints, Found, last_valid, set_aside
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule, validation_protocol
from tencrop.training.determinism import check_deterministic
from tencrop.training.monitors import Diverged, Interrupted, Interruption, Metrics, Pace
from tencrop.training.precision import set_precision
from tencrop.training.progress import ProgressBar

EXIT_CODES = {"complete": 0, "interrupted": INTERRUPTED, "diverged": 1}


@dataclass(frozen=True)
class FitResult:
    """How a training ended."""

    status: str  # complete | interrupted | diverged
    message: str
    checkpoint: Path  # last.ckpt; not there yet where a run ended before its first
    step: int  # optimizer steps taken
    weights_sha256: str  # of the network as it is now
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
    """Train what `build` built, or continue from run_dir/checkpoints/last.ckpt exactly where it stands.

    Where last.ckpt is damaged or of another run, it continues from previous.ckpt and says so; the file is kept as
    refused.ckpt. Raises UserError for a checkpoint that does not fit. Where the ranks were started by this command
    (distributed/launch.py) all but the first end here, with exit code 0, when the run is interrupted or diverges: the
    first says so.
    """
    config, last = classifier.config, run_dir / "checkpoints" / LAST
    classifier.run_id = run_manifest(run_dir).get("run_id")
    found = last_valid(run_dir)
    start = None if found is None else str(found.path)
    if found is not None:
        _pass_over_refused(last, found)
    interruption = Interruption(agree_every_steps=config.log_every_steps)
    metrics = Metrics(run_dir / "metrics.jsonl", every_steps=config.log_every_steps)
    checkpoints = Checkpoints(last.parent, every_steps=config.checkpoint_every_steps, interruption=interruption)
    watchers = [metrics, Pace(metrics), ProgressBar(metrics), *callbacks, checkpoints]
    status, message = "complete", "complete"
    with interruption, _quiet_lightning():
        trainer = build_trainer(config, run_dir=run_dir, logger=logger, callbacks=watchers, found=found)
        del found  # as large as the state of the training
        try:
            trainer.fit(classifier, data, ckpt_path=start)
        except Interrupted as reason:
            status, message = "interrupted", str(reason)
        except Diverged as reason:
            kept = last if last.exists() else start
            kept = f"{kept} is from before" if kept else "there is no checkpoint yet"
            mend = "a lower optimizer.lr, more warm-up or training.clip_grad_norm is the usual mend"
            status, message = "diverged", f"{reason}; {kept}; {mend}"
        finally:
            data.close()
            metrics.close()
    if status != "complete" and not trainer.is_global_zero and launched() is None:
        sys.exit(0)
    if status == "complete":
        interruption.pass_on()
    return _result(last, classifier, trainer.global_step, status, message)


def build(config: Config, *, batches: Batches, manifest: dict[str, Any]) -> tuple[DataModule, Classifier]:
    """What is trained on, and what is trained, with the weights that the seed draws; nothing is written.

    Raises UserError for hardware, data or model that do not fit the configuration.
    """
    _refuse_missing_gpus(config)
    set_precision(config.training.precision)
    data = DataModule(config, batches)
    _refuse_unfit_images(config, data)
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=len(manifest["classes"]), image_size=config.image_size)
    check_deterministic(model, config)
    classifier = Classifier(
        config, model, statistics=manifest["statistics"], batches=batches, steps_per_epoch=data.steps_per_epoch
    )
    return data, classifier


def _refuse_unfit_images(config: Config, data: DataModule) -> None:
    """A validation crops the center of images, which short_side=null leaves as they are; all of each is rescaled."""
    sides = data.val_split.stored_sizes[data.val_index].min(1)
    sizes = evaluation_plan(data.val_index, data.val_split.stored_sizes, protocol=validation_protocol(config)).sizes
    key = f"short_side={'null' if config.short_side is None else config.short_side}"
    check_rescaled(sizes, lambda place: data.val_split.names(data.val_index[place]), key=key)
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
    """The result of a run that has taken all its steps, None for any other, whose last.ckpt is then set aside if it is
    damaged or of another run.

    Now, before the manifest says that a complete run is trained again: from then on it does not say which weights a
    complete checkpoint must have, and another rank, or `fit`, would take the one that is refused here.
    Raises UserError where last.ckpt is damaged or of another run, and no previous.ckpt stands in for it.
    """
    found, last = last_valid(run_dir), run_dir / "checkpoints" / LAST
    if found is None:
        return None
    if not found.content["tencrop"]["is_complete"]:
        if last.exists() and os.access(last.parent, os.W_OK):
            _pass_over_refused(last, found)
        return None
    facts = found.content["tencrop"]
    message = "already complete" if found.refusal is None else f"already complete ({found.refusal})"
    return FitResult("complete", message, found.path, facts["step"], facts["weights_sha256"], facts["ema_sha256"])


def _pass_over_refused(last: Path, found: Found) -> None:
    """Set aside a last.ckpt that was passed over, and say why, once."""
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
    """Without Lightning's advertisements and its warnings about itself."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*The `srun` command is available")  # typed outside a job, say
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")  # Lightning 2.6 with torch 2.15
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _ddp(*, exactly: bool) -> DDPStrategy:
    # No buffers from rank 0: running statistics are the mean over the ranks. The switch has a new name in torch 2.15.
    names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
    return (_ExactDDPStrategy if exactly else DDPStrategy)(**options)


class _ExactDDPStrategy(DDPStrategy):
    """DDP whose sums of gradients round alike in a run that continues and in one that never stopped.

    DDP lays the gradients out anew after its first step, in the order in which they were ready, and the place of a
    number decides in which order four ranks and more add it up. Here they are laid out once, before the first step, in
    the order of the parameters. The price: the first layers' gradients, ready last, are exchanged first, so that the
    exchange begins when the backward pass is over.
    """

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        wrapped = super()._setup_model(model)
        wrapped.reducer._push_all_rebuilt_params()
        assert wrapped.reducer._rebuild_buckets(), "torch laid them out anew already"
        return wrapped


def build_trainer(
    config: Config, *, run_dir: Path, logger: Logger | None, callbacks: Iterable[Callback], found: Found | None
) -> Trainer:
    """Lightning's Trainer for this hardware, without what it would add: samplers, bars, checkpoints, requeueing.

    found: the checkpoint that it will be told to continue from.
    """
    hardware = config.hardware
    accelerator = accelerator_of(hardware)
    exactly = is_deterministic(config)
    # torch would also fill all new memory, against operations that read what they did not write; none here does
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    distributed = hardware.devices * hardware.nodes > 1
    trainer = Trainer(
        accelerator=accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_ddp(exactly=exactly) if distributed else "auto",
        plugins=[AtomicCheckpointIO(found), cluster_environment()],
        deterministic=exactly,
        benchmark=not exactly,
        precision="32-true",  # autocast stands in Classifier.logits
        max_epochs=config.training.epochs,
        max_steps=-1,
        check_val_every_n_epoch=config.training.evaluate_every_epochs,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=logger if logger is not None else False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    # Signals are ours: Lightning would broadcast from within its handler, and of several ranks a flag every step,
    # which waits for the device (2.5.2 and later).
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    # The last step is always validated: Lightning leaves the last epoch out where evaluate_every_epochs does not divide
    # it, and the choice of the best checkpoint with it.
    is_due = epoch_loop._should_check_val_epoch
    epoch_loop._should_check_val_epoch = lambda: (  # type: ignore[method-assign]
        is_due() or trainer.global_step == trainer.lightning_module.total_steps
    )
    return trainer

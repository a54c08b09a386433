"""Write, validate and choose the checkpoints of a run: last.ckpt, previous.ckpt and best.ckpt.

A checkpoint is never half written, and reading one never executes code from it: it holds only tensors, numbers, strings
and containers, which torch.load(weights_only=True) reads, whereas a general pickle can run any program.
models/checkpoint_files.py computes a file's digest and compares a checkpoint with its run.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from tencrop.cli.command_line import typed_word
from tencrop.config import UserError
from tencrop.config.launcher import is_first_process
from tencrop.files import name_oserror, sync_folder
from tencrop.models.checkpoint_files import RefusedCheckpoint, add_digest, load_checked, weights_sha256
from tencrop.training.monitors import Interruption

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "LoadedCheckpoint",
    "latest_valid_checkpoint",
    "read_checkpoint",
    "weights_sha256",
]

# What a checkpoint may contain beside dicts and lists: what torch.load(weights_only=True) reads.
PLAIN = (Tensor, bool, int, float, str, type(None))
LAST, PREVIOUS, REFUSED = "last.ckpt", "previous.ckpt", "refused.ckpt"


class LoadedCheckpoint(NamedTuple):
    """A checkpoint to resume from. Its content is kept, so that a file as large as the training state is read once."""

    path: Path
    content: dict[str, Any]
    refusal: str | None  # why last.ckpt was refused and what is used instead; None if it was not refused


def latest_valid_checkpoint(run_dir: Path) -> LoadedCheckpoint | None:
    """The run's last.ckpt, or previous.ckpt if last.ckpt is damaged, missing or from another run; None for a new run.

    Raises UserError if there are checkpoints but none is valid.
    """
    last, previous = (run_dir / "checkpoints" / name for name in (LAST, PREVIOUS))
    if not last.exists() and not previous.exists():
        return None
    try:
        return LoadedCheckpoint(last, read_checkpoint(last), None)
    except RefusedCheckpoint as error:
        if not previous.exists():
            raise
        reason = error.reason
    try:
        content = read_checkpoint(previous)
    except RefusedCheckpoint as error:
        # Never start over silently: days of training may be in a file that can still be restored from a copy.
        remedy = f"and {PREVIOUS} beside it {error.reason}; delete both to train from the start"
        raise UserError(f"{last}: {reason}, {remedy}") from error
    facts = content["tencrop"]
    refusal = f"{last}: {reason}; resuming from {PREVIOUS} (step {facts['step']} of {facts['total_steps']})"
    return LoadedCheckpoint(previous, content, refusal)


def set_aside(run_dir: Path) -> None:
    """Rename a refused last.ckpt to refused.ckpt instead of deleting it: it may be somebody's only copy.

    Without a last.ckpt, the next checkpoint does not overwrite previous.ckpt, which is the only valid one now.
    """
    last = run_dir / "checkpoints" / LAST
    if is_first_process() and last.exists():
        os.replace(last, last.with_name(REFUSED))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint as tensors on the CPU, numbers, strings, lists and dicts; no code in the file is executed.

    Raises UserError if the file is missing, broken, damaged, of another run, or holds other objects.
    """
    try:
        checkpoint = load_checked(path)
    except FileNotFoundError as error:
        raise RefusedCheckpoint(path, "there is no such checkpoint") from error
    except (OSError, UserError):
        raise
    except Exception as error:  # broken bytes can make torch raise almost anything
        reason = "not a checkpoint that can be read safely (broken, or a pickle with code in it)"
        raise RefusedCheckpoint(path, reason) from error
    if not isinstance(checkpoint, dict) or "tencrop" not in checkpoint:
        remedy = f"plain weights are evaluated with {typed_word('weights', path)}"
        raise RefusedCheckpoint(path, "not one of our checkpoints", remedy)
    return checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoint I/O for Lightning: writes a temporary file, then renames it; a kill leaves the last good checkpoint.

    The old last.ckpt becomes previous.ckpt: if last.ckpt is damaged later, the run loses the steps in between and not
    everything. The cost is disk space: two checkpoints for each run (ResNet-50 with momentum: twice 205 MB), and three
    during a write.
    """

    def __init__(self, found: LoadedCheckpoint | None = None):
        self.found = found  # the checkpoint to resume from, already read; load_checkpoint returns it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError, for example for a full disk; the previous file is then unchanged."""
        _assert_plain(checkpoint)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch.save straight to a full disk raises RuntimeError, which names no file
        torch.save(checkpoint, buffer)
        add_digest(buffer)
        # A fixed name, unlike that of atomic_file: what kill -9 leaves is overwritten by the next checkpoint instead of
        # filling the disk, 200 MB at every kill.
        temporary = path.with_name(path.name + ".tmp")
        try:
            with name_oserror(path, partial=temporary), open(temporary, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # before the rename: after a power cut the name must not point to empty blocks
            if path.name == LAST:
                _keep_previous(path)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        # Drop our reference: Lightning restores from the returned dict, which is as large as the training state.
        found, self.found = self.found, None
        return found.content if found is not None and found.path == Path(path) else read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _keep_previous(last: Path) -> None:
    """Make previous.ckpt a hard link to last.ckpt, which copies nothing; last.ckpt exists at every moment."""
    previous = last.with_name(PREVIOUS)
    if not last.exists():
        return
    previous.unlink(missing_ok=True)
    try:
        os.link(last, previous)
    except OSError:  # no hard links here: until the new last.ckpt is renamed into place, only previous.ckpt exists
        os.replace(last, previous)


class Checkpoints(Callback):
    """Save last.ckpt after every epoch, every `every_steps` steps and on interruption; and best.ckpt.

    best.ckpt has the lowest top-1 error on the minival. Without a minival there is none: the minimum over many errors
    on the test images is lower than the error on new images, so selecting on them biases the reported result.
    """

    def __init__(self, folder: Path, *, every_steps: int | None, interruption: Interruption):
        self.folder = folder
        self.every_steps = every_steps
        self.interruption = interruption

    def on_train_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        step = classifier.global_step
        if not classifier.is_at_step_boundary or classifier.is_at_epoch_end or step == classifier.total_steps:
            return  # on_train_epoch_end saves these steps, after the validation
        is_interrupted = self.interruption.is_agreed(trainer, step)
        if is_interrupted or (self.every_steps and step % self.every_steps == 0):
            self._save(trainer, classifier)
        if is_interrupted:
            self.interruption.stop(step)

    def on_validation_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        # A cluster may kill the job before a long validation ends. Only with one rank, though: agreeing on it takes a
        # collective operation, which would hang, because ranks have different numbers of validation batches. Several
        # ranks check in on_train_epoch_end.
        if trainer.world_size == 1 and classifier.is_at_epoch_end and self.interruption.is_requested:
            self._save(trainer, classifier)
            self.interruption.stop(classifier.global_step)

    def on_load_checkpoint(self, trainer: Trainer, classifier: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning counts micro-batches within the epoch. A run that resumes on other hardware may cut a global batch
        # into another number of them, so the counters are derived from the optimizer step, which is the same
        # everywhere.
        step, per_step = checkpoint["tencrop"]["step"], classifier.batches.accumulate_grad_batches
        num_done = (step % classifier.steps_per_epoch or classifier.steps_per_epoch) * per_step
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        num_unfinished = current["processed"] - current["completed"]  # 1 if saved in a hook at the end of a batch
        current |= {"ready": num_done, "started": num_done, "processed": num_done}
        current["completed"] = num_done - num_unfinished

    def on_save_checkpoint(self, trainer: Trainer, classifier: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.validating:
            # Interrupted during a validation. Lightning would resume it after the batches that are done, but the error
            # counts of these are not in the checkpoint. Marked as started with no batch done, it starts again.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["current"] |= {"ready": 0, "started": 0, "processed": 0, "completed": 0}

    def on_train_epoch_end(self, trainer: Trainer, classifier: Any) -> None:
        # best.ckpt first: if the job is killed between the two, last.ckpt is older and the best is saved again.
        if classifier.is_best:
            self._save(trainer, classifier, "best.ckpt")
        self._save(trainer, classifier)
        step = classifier.global_step
        if not classifier.is_complete and self.interruption.is_agreed(trainer, step, at_epoch_end=True):
            self.interruption.stop(step)

    def _save(self, trainer: Trainer, classifier: Any, name: str = LAST) -> None:
        classifier.prepare_checkpoint()
        trainer.save_checkpoint(self.folder / name)


def _assert_plain(value: Any, where: str = "checkpoint") -> None:
    # Fail when a checkpoint is written, not months later when someone reads it.
    if isinstance(value, Mapping):
        for key, inner in value.items():
            assert isinstance(key, str | int), f"{where} has a key {key!r}"
            _assert_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _assert_plain(inner, f"{where}[{number}]")
    else:
        assert isinstance(value, PLAIN), f"{where} is a {type(value).__name__}, which weights_only does not read"

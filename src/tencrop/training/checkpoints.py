"""Checkpoints that are never half written and that reading cannot execute [15]; which ones a run keeps.

`fit` hands AtomicCheckpointIO to Lightning and adds Checkpoints to its callbacks. models/checkpoint_files.py has the
digest of a file and its comparison with the run.
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

__all__ = ["AtomicCheckpointIO", "Checkpoints", "Found", "last_valid", "read_checkpoint", "weights_sha256"]

PLAIN = (Tensor, bool, int, float, str, type(None))
LAST, PREVIOUS, REFUSED = "last.ckpt", "previous.ckpt", "refused.ckpt"


class Found(NamedTuple):
    """A checkpoint to go on from."""

    path: Path
    content: dict[str, Any]
    refusal: str | None  # why last.ckpt was passed over, and what is done; None where it was not


def last_valid(run_dir: Path) -> Found | None:
    """The run's last.ckpt, or previous.ckpt where that is damaged, of another run or gone; None in a new run folder.

    Raises UserError where neither can be gone on from.
    """
    last, previous = (run_dir / "checkpoints" / name for name in (LAST, PREVIOUS))
    if not last.exists() and not previous.exists():
        return None
    try:
        return Found(last, read_checkpoint(last), None)
    except RefusedCheckpoint as error:
        if not previous.exists():
            raise
        reason = error.reason
    try:
        content = read_checkpoint(previous)
    except RefusedCheckpoint as error:
        mend = f"and {PREVIOUS} beside it {error.reason}; delete both to train from the start"
        raise UserError(f"{last}: {reason}, {mend}") from error
    facts = content["tencrop"]
    refusal = f"{last}: {reason}; going on from {PREVIOUS} (step {facts['step']} of {facts['total_steps']})"
    return Found(previous, content, refusal)


def set_aside(run_dir: Path) -> None:
    """Rename a last.ckpt that was passed over to refused.ckpt: it may be somebody's only copy.

    The next checkpoint then finds no last.ckpt, and so leaves previous.ckpt, the only valid one, in its place.
    """
    last = run_dir / "checkpoints" / LAST
    if is_first_process() and last.exists():
        os.replace(last, last.with_name(REFUSED))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint as tensors on the CPU, numbers, strings, lists and dicts; nothing in the file is executed.

    Raises UserError for a file that is not there, is broken, damaged or of another run, or holds anything else.
    """
    try:
        checkpoint = load_checked(path)
    except FileNotFoundError as error:
        raise RefusedCheckpoint(path, "there is no such checkpoint") from error
    except (OSError, UserError):
        raise
    except Exception as error:  # torch raises whatever the broken bytes lead to
        reason = "not a checkpoint that can be read safely (broken, or a pickle with code in it)"
        raise RefusedCheckpoint(path, reason) from error
    if not isinstance(checkpoint, dict) or "tencrop" not in checkpoint:
        mend = f"plain weights are evaluated with {typed_word('weights', path)}"
        raise RefusedCheckpoint(path, "not one of our checkpoints", mend)
    return checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Writes to a temporary file in the same folder, then renames: a killed run leaves the last good checkpoint.

    The former last.ckpt stays as previous.ckpt, so that a file that is damaged later costs the steps since then and not
    the run. It doubles the disk that a run takes (ResNet-50 with momentum: twice 205 MB), three times while writing.
    """

    def __init__(self, found: Found | None = None):
        self.found = found  # read already, to be chosen: Lightning is given it and reads nothing again

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError (a full disk, say) with the former file untouched."""
        _assert_plain(checkpoint)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch.save to a full disk would say RuntimeError
        torch.save(checkpoint, buffer)
        add_digest(buffer)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with name_oserror(path, partial=temporary), open(temporary, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST:
                _keep_previous(path)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        found, self.found = self.found, None  # let go: it is as large as the training's own state
        return found.content if found is not None and found.path == Path(path) else read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _keep_previous(last: Path) -> None:
    """previous.ckpt becomes a second name of last.ckpt, which costs no copy; last.ckpt is there all the while."""
    previous = last.with_name(PREVIOUS)
    if not last.exists():
        return
    previous.unlink(missing_ok=True)
    try:
        os.link(last, previous)
    except OSError:  # a file system without hard links: for a moment previous.ckpt is the only, and valid, one
        os.replace(last, previous)


class Checkpoints(Callback):
    """Keeps `last.ckpt` at the end of every epoch, every `every_steps` steps and on interruption, and `best.ckpt`.

    Best is the lowest top-1 error on the minival; without a minival there is none, as selecting on the test images
    would bias the headline [13].
    """

    def __init__(self, folder: Path, *, every_steps: int | None, interruption: Interruption):
        self.folder = folder
        self.every_steps = every_steps
        self.interruption = interruption

    def on_train_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        step = classifier.global_step
        if not classifier.is_at_step_boundary or classifier.is_at_epoch_end or step == classifier.total_steps:
            return  # the end of an epoch is saved after its validation
        is_interrupted = self.interruption.is_agreed(trainer, step)
        if is_interrupted or (self.every_steps and step % self.every_steps == 0):
            self._save(trainer, classifier)
        if is_interrupted:
            self.interruption.stop(step)

    def on_validation_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        # several ranks have unequal numbers of batches: they agree at the end
        if trainer.world_size == 1 and classifier.is_at_epoch_end and self.interruption.is_requested:
            self._save(trainer, classifier)
            self.interruption.stop(classifier.global_step)

    def on_load_checkpoint(self, trainer: Trainer, classifier: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning counts the epoch's micro-batches, and the hardware that continues may cut another number of them.
        step, per_step = checkpoint["tencrop"]["step"], classifier.batches.accumulate_grad_batches
        num_done = (step % classifier.steps_per_epoch or classifier.steps_per_epoch) * per_step
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        num_unfinished = current["processed"] - current["completed"]  # 1: saved in the hook that ends a batch
        current |= {"ready": num_done, "started": num_done, "processed": num_done}
        current["completed"] = num_done - num_unfinished

    def on_save_checkpoint(self, trainer: Trainer, classifier: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.validating:
            # Lightning resumes a validation in its middle, and only from a checkpoint that says so: ours begins anew
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["current"] |= {"ready": 0, "started": 0, "processed": 0, "completed": 0}

    def on_train_epoch_end(self, trainer: Trainer, classifier: Any) -> None:
        if classifier.is_best:
            self._save(trainer, classifier, "best.ckpt")
        self._save(trainer, classifier)
        step = classifier.global_step
        if not classifier.is_complete and self.interruption.is_agreed(trainer, step, at_epoch_end=True):
            self.interruption.stop(step)

    def _save(self, trainer: Trainer, classifier: Any, name: str = LAST) -> None:
        classifier.prepare_checkpoint()
        trainer.save_checkpoint(self.folder / name)


def _assert_plain(value: Any, place: str = "checkpoint") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            assert isinstance(key, str | int), f"{place} has a key {key!r}"
            _assert_plain(inner, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _assert_plain(inner, f"{place}[{number}]")
    else:
        assert isinstance(value, PLAIN), f"{place} is a {type(value).__name__}, which weights_only does not read"

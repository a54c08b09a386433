"""Callbacks that watch a run: signals, metrics and the expected end. None of them changes what is learned.

`fit` adds Metrics and Pace to Lightning's callbacks and passes Interruption to Checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from tencrop.config.launcher import is_first_process
from tencrop.console import rate
from tencrop.data.sampling.digest import digest_text
from tencrop.distributed.collectives import all_reduce
from tencrop.progress import duration
from tencrop.signals import SIGNALS
from tencrop.training.metric_rows import NO_ROWS, append_row, keep_rows, read_rows, sync_rows


class Interrupted(Exception):
    """The run was asked to stop and has saved its checkpoint."""


class Interruption:
    """A flag that SIGTERM, SIGUSR1 and the first Ctrl-C set; ranks agree on it where they can save a checkpoint.

    A context manager: on exit it restores the previous signal handlers.
    """

    def __init__(self, *, agree_every_steps: int):
        self.is_requested = False
        self.agree_every_steps = agree_every_steps
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in the main thread only
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # Only a flag: the handler may run in the middle of a step or of a collective operation.
        self.is_requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    def is_agreed(self, trainer: Trainer, step: int, *, at_epoch_end: bool = False) -> bool:
        """Whether any rank was asked to stop. All ranks must call this at the same steps.

        With several ranks, this is an all-reduce that waits for the device, so it happens only every
        `agree_every_steps` steps and at the end of an epoch.
        """
        if trainer.world_size == 1:
            return self.is_requested
        if step % self.agree_every_steps and not at_epoch_end:
            return False
        flag = torch.tensor(int(self.is_requested), device=trainer.strategy.root_device)
        return bool(all_reduce(flag, dist.ReduceOp.MAX))

    def stop(self, step: int) -> None:
        raise Interrupted(f"interrupted after step {step}; the same command continues")

    def pass_on(self) -> None:
        """Raise SIGTERM again for a request that came after the last checkpoint; the present handler answers it."""
        if self.is_requested:
            signal.raise_signal(signal.SIGTERM)


def all_reduce_digest(trainer: Trainer) -> Tensor:
    """The sum of the data digest over all ranks, int64 on the host. All ranks must call this.

    Rank 0 continues from the total and the others from 0, so that a later sum counts every sample once.
    """
    sums = trainer.datamodule.digest.sums  # type: ignore[attr-defined]
    total = all_reduce(sums.to(trainer.strategy.root_device)).cpu()
    sums.copy_(total if trainer.is_global_zero else torch.zeros_like(total))
    return total


class Metrics(Callback):
    """Read the counters from the device every `every_steps` steps, and write rows to metrics.jsonl and the tracker.

    Between these steps nothing waits for the device. No step waits for the disk: rows are synced before each
    checkpoint, so that after a power cut metrics.jsonl has all rows up to the checkpoint's step.

    Every row has step, epoch (a fraction of epochs done), split (train | val | minival), loss (nats), top1_error and
    top5_error (fractions), and num_images since the previous row, which these are means over. A training row also has
    lr, images_per_s, the digest of all training data so far, and `labels`, which its errors are counted against: own,
    or heavier (with mixing: the label with the larger share of the image). A validation row has `weights`: raw or ema.
    """

    def __init__(self, path: Path, *, every_steps: int):
        self.path = path
        self.every_steps = every_steps
        self.num_rows = 0
        self.digest: str | None = NO_ROWS  # of all rows; None after loading a checkpoint of earlier code
        self.latest: dict[str, dict[str, Any]] = {}  # the last row of each split, for ProgressBar and Pace
        self._file: TextIO | None = None  # open on rank 0 from the first row on
        self._start_clock(0)

    def state_dict(self) -> dict[str, Any]:
        return {"num_rows": self.num_rows, "digest": self.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_rows, self.digest = state_dict["num_rows"], state_dict.get("digest")

    def on_train_start(self, trainer: Trainer, classifier: Any) -> None:
        if trainer.is_global_zero:
            # A killed run wrote rows after its last checkpoint. It will compute those steps, and write those rows,
            # again.
            self.num_rows, self.digest = keep_rows(self.path, self.num_rows, self.digest)
            # A killed tracker may have lost rows from before the checkpoint; our trackers skip the rows that they have.
            if trainer.loggers:
                for row in read_rows(self.path):
                    if "step" in row:  # early versions wrote none
                        _track(trainer, row)
        self._start_clock(classifier.global_step)

    def on_save_checkpoint(self, trainer: Trainer, classifier: Any, checkpoint: dict[str, Any]) -> None:
        if self._file is not None:  # Lightning calls this before the checkpoint is written
            sync_rows(self._file)

    def close(self) -> None:
        """Sync the last rows to disk, before the manifest records how the run ended."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            sync_rows(file)
        finally:
            # On a full disk close() fails again; the first error is the one to report.
            with contextlib.suppress(OSError):
                file.close()

    def on_train_epoch_start(self, trainer: Trainer, classifier: Any) -> None:
        self._start_clock(classifier.global_step)

    def on_train_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        step = classifier.global_step
        is_last = classifier.is_at_epoch_end or step == classifier.total_steps
        if classifier.is_at_step_boundary and (step % self.every_steps == 0 or is_last):
            counts = classifier.read_counts(classifier.train_counts)
            num_images = (step - self._since_step) * classifier.global_batch
            images_per_s = float(f"{num_images / (time.perf_counter() - self._since):.4g}")
            labels = "heavier" if classifier.is_mixed else "own"
            row = {"lr": classifier.latest_lr, "images_per_s": images_per_s, "labels": labels}
            self._write(trainer, classifier, "train", counts | row | digest_text(all_reduce_digest(trainer)))
            self._start_clock(step)

    def on_validation_end(self, trainer: Trainer, classifier: Any) -> None:
        weights = "raw" if classifier.ema is None else "ema"
        # The validation itself is not part of the training's images/s: on_train_epoch_start restarts the clock.
        self._write(trainer, classifier, classifier.selection_split, classifier.validation | {"weights": weights})

    def _start_clock(self, step: int) -> None:
        self._since, self._since_step = time.perf_counter(), step

    def _write(self, trainer: Trainer, classifier: Any, split: str, values: dict[str, Any]) -> None:
        step = classifier.global_step
        epoch = round(step / classifier.steps_per_epoch, 4)
        self.latest[split] = {"step": step, "epoch": epoch, "split": split, **values}
        self.num_rows += 1  # on every rank: the callback's state is saved by rank 0 and loaded by all
        if not trainer.is_global_zero:
            return
        assert self.digest is not None
        if self._file is None:
            self._file = self.path.open("a")
        self.digest = append_row(self._file, self.latest[split], self.digest)
        _track(trainer, self.latest[split])


def _track(trainer: Trainer, row: dict[str, Any]) -> None:
    """Log a row of metrics.jsonl as SPLIT/KEY. Trackers plot numbers only, so the digests and `labels` are left out."""
    about = ("step", "epoch", "split")
    values = {key: value for key, value in row.items() if key not in about and isinstance(value, int | float)}
    numbers = {f"{row['split']}/{key}": value for key, value in values.items()} | {"epoch": row["epoch"]}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, row["step"])


class Pace(Callback):
    """Report which run starts, and once how fast it is and when it will end, compared with the job's time limit."""

    def __init__(self, metrics: Metrics):
        self.metrics = metrics
        self.limit = job_end_time()
        # Steps of the training rows so far. The second row counts: the first includes cuDNN's search for algorithms and
        # the filling of the loader's queue.
        self.rows_seen: list[int] = []

    def on_train_start(self, trainer: Trainer, classifier: Any) -> None:
        if trainer.is_global_zero:  # in a sweep, nothing else tells the runs apart until they end
            line = start_sentence(self.metrics.path.parent, trainer.global_step, classifier.total_steps)
            print(line, file=sys.stderr)

    def on_train_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        row = self.metrics.latest.get("train")
        if len(self.rows_seen) == 2 or row is None or row["step"] in self.rows_seen or not trainer.is_global_zero:
            return
        self.rows_seen.append(row["step"])
        if len(self.rows_seen) < 2:
            return
        num_images = (classifier.total_steps - classifier.global_step) * classifier.global_batch
        print(pace_sentence(row["images_per_s"], num_images, now=time.time(), limit=self.limit), file=sys.stderr)


def start_sentence(run_dir: Path, step: int, total_steps: int) -> str:
    """The line that Pace prints when training starts, or resumes after `step`."""
    if step == 0:
        return f"{run_dir}: training for {total_steps:,} steps"
    return f"{run_dir}: resuming after step {step:,} of {total_steps:,}"


def pace_sentence(images_per_s: float, num_images: int, *, now: float, limit: float | None) -> str:
    """The line that Pace prints. num_images: left to train on; now, limit (the job's end): Unix time in seconds."""
    end = now + num_images / images_per_s
    sentence = (
        f"{rate(images_per_s)}: training ends in {duration(end - now)}, {_date_text(end)} (validation not counted)"
    )
    if limit is None:
        return sentence
    if end < limit:
        return f"{sentence}; the job's time limit is {_date_text(limit)}"
    return f"{sentence}; the job's time limit comes {duration(end - limit)} before, then the same command continues"


def _date_text(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%d %b %H:%M}"


def job_end_time() -> float | None:
    """When SLURM will end this job, Unix time in seconds; None outside a job or if SLURM does not tell."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    # Ten digits last until 2286. A number that datetime cannot represent would end the run.
    if re.fullmatch(r"[0-9]{1,10}(\.[0-9]*)?", end):
        return float(end)
    if end and is_first_process():
        print(f"SLURM_JOB_END_TIME={end}: not a Unix time in seconds; asking squeue instead", file=sys.stderr)
    # Older SLURM versions do not set the variable. A slow or missing squeue must not stop a training: no limit is
    # shown.
    command = ["squeue", "--noheader", "--format=%e", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        return datetime.fromisoformat(answer).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None

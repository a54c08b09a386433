"""Show training progress: a progress bar on a terminal, a line every 30 seconds in a log.

Shows only numbers that Metrics has read already, so that the display never waits for the device.
"""

from __future__ import annotations

import sys
from typing import Any

from pytorch_lightning import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from tencrop.console import plain_column, plain_console, rate
from tencrop.progress import LogTimer
from tencrop.training.monitors import Metrics


class ProgressBar(Callback):
    """A bar over all steps on a terminal, or else a line every LINE_EVERY_S seconds; a line after each validation.

    Only rank 0 prints. Lightning's own bar restarts in every epoch and says nothing about the whole run.
    """

    def __init__(self, metrics: Metrics):
        self.metrics = metrics
        self.bar: Progress | None = None
        self.console = plain_console(file=sys.stderr)

    def on_train_start(self, trainer: Trainer, classifier: Any) -> None:
        self.timer, self.first_step = LogTimer(), classifier.global_step  # a resumed run: speed from here on
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        # Steps per second averaged over 60 s: rich's default of 30 s jumps with every validation and checkpoint.
        text = plain_column("{task.description}")
        self.bar = Progress(text, *columns, console=self.console, refresh_per_second=4, speed_estimate_period=60)
        self.bar.add_task("", total=classifier.total_steps, completed=classifier.global_step)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        # The bar counts optimizer steps. Micro-batches in between would move nothing.
        if not trainer.is_global_zero or not classifier.is_at_step_boundary:
            return
        step, total_steps = classifier.global_step, classifier.total_steps
        if self.bar is not None:
            text = "  ".join([f"epoch {classifier.current_epoch + 1}", *self._latest()])
            self.bar.update(self.bar.task_ids[0], completed=step, description=text)
        elif self.timer.is_due():
            left = self.timer.time_left(num_done=step - self.first_step, num_left=total_steps - step)
            where = f"epoch {classifier.current_epoch + 1} of {classifier.num_epochs}"
            self._print(", ".join([where, f"step {step:,} of {total_steps:,}", *self._latest(), left]))

    def _latest(self) -> list[str]:
        """Loss, error and speed from the latest training row; empty before the first row."""
        if (row := self.metrics.latest.get("train")) is None:
            return []
        return [f"loss {row['loss']:.3f}", f"top-1 {row['top1_error']:.1%}", f"{rate(row['images_per_s'])}"]

    def on_validation_batch_end(
        self, trainer: Trainer, classifier: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.is_global_zero and self.bar is None and self.timer.is_due():
            num_batches = trainer.num_val_batches[0]
            self._print(f"epoch {classifier.current_epoch + 1}: validating, batch {batch_idx + 1:,} of {num_batches:,}")

    def on_validation_end(self, trainer: Trainer, classifier: Any) -> None:
        if not trainer.is_global_zero:
            return
        row = classifier.validation
        self._print(
            f"epoch {classifier.current_epoch + 1}: {classifier.selection_split} top-1 error {row['top1_error']:.2%},"
            f" top-5 {row['top5_error']:.2%}, loss {row['loss']:.4f}"
        )

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    # Whatever ends the run, the bar must be stopped: rich hides the cursor while it is running.
    def teardown(self, trainer: Trainer, classifier: Any, stage: str) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

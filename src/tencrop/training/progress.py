"""The progress bar: where the run is, how fast, how long still. Reads only what Metrics has read already."""

from __future__ import annotations

import sys
from typing import Any

from pytorch_lightning import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tencrop.training.monitors import Metrics


class ProgressBar(Callback):
    """A bar over all steps on a terminal; elsewhere one line a validation, so that a job's log stays short."""

    def __init__(self, metrics: Metrics):
        self.metrics = metrics
        self.bar: Progress | None = None
        self.console = Console(file=sys.stderr)

    def on_train_start(self, trainer: Trainer, classifier: Any) -> None:
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        text = TextColumn("{task.description}")
        self.bar = Progress(text, *columns, console=self.console, refresh_per_second=4, speed_estimate_period=60)
        self.bar.add_task("", total=classifier.total_steps, completed=classifier.global_step)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, classifier: Any, *_: Any) -> None:
        if self.bar is None or not classifier.is_at_step_boundary:
            return
        text = f"epoch {classifier.current_epoch + 1}"
        if row := self.metrics.latest.get("train"):
            text += f"  loss {row['loss']:.3f}  top-1 {row['top1_error']:.1%}  {row['images_per_s']:,.0f} images/s"
        self.bar.update(self.bar.task_ids[0], completed=classifier.global_step, description=text)

    def on_validation_end(self, trainer: Trainer, classifier: Any) -> None:
        if not trainer.is_global_zero:
            return
        row = classifier.validation
        self.console.print(
            f"epoch {classifier.current_epoch + 1}: {classifier.selection_split} top-1 error {row['top1_error']:.2%},"
            f" top-5 {row['top5_error']:.2%}, loss {row['loss']:.4f}",
            highlight=False,
        )

    def teardown(self, trainer: Trainer, classifier: Any, stage: str) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

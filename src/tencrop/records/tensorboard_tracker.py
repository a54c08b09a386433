"""TensorBoard's event files in tracking/ of the run folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from tencrop.records.tracker import Tracker, flattened
from tencrop.text_tables import markdown_table

SCALARS = (bool, int, float, str)  # the types that TensorBoard's hyperparameters may have


class TensorBoardTracker(Tracker, TensorBoardLogger):
    """Lightning's logger, with the configuration as text and each point of a curve once."""

    package = "tensorboard"

    def __init__(self, run_dir: Path, last_steps: Mapping[str, int]):
        Tracker.__init__(self, last_steps)
        # Lightning's default version would create a new folder version_N at every resume, and its hp_metric a chart of
        # the constant -1.
        TensorBoardLogger.__init__(self, save_dir=run_dir, name="tracking", version="", default_hp_metric=False)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self.attempt(self._log_configuration, dict(vars(params) if isinstance(params, Namespace) else params))

    def _log_configuration(self, values: dict[str, Any]) -> None:
        text = yaml.safe_dump(values, sort_keys=False)
        # Markdown: four spaces make a block of code.
        self.experiment.add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()))
        # The tab HPARAMS. The zero only declares the metric; its values are those of the curve.
        scalars = {key: value if isinstance(value, SCALARS) else str(value) for key, value in flattened(values).items()}
        for summary in hparams(scalars, {"val/top1_error": 0.0}):
            self.experiment.file_writer.add_summary(summary)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if new := self.select_new(metrics, step):
            self.attempt(super().log_metrics, new, step)

    def log_pictures(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        self.attempt(self.experiment.add_images, key, pixels, global_step=step, dataformats="NHWC")

    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        # TensorBoard has no tables, but renders Markdown
        self.attempt(self.experiment.add_text, key, markdown_table(columns, rows, left=range(len(columns))))

    def log_page(self, path: Path) -> None:
        """TensorBoard shows no pages."""

    def close(self, *, is_complete: bool) -> None:
        self.attempt(self.finalize, "success")


def open_tensorboard(run_dir: Path, *, for_training: bool, say: Callable[[str], None]) -> TensorBoardTracker:
    """for_training: the steps that the event files have are skipped."""
    folder = run_dir / "tracking"
    tracker = TensorBoardTracker(run_dir, _last_steps(folder) if for_training else {})
    say(f"tensorboard: tensorboard --logdir {folder}")
    return tracker


def _last_steps(folder: Path) -> dict[str, int]:
    """The last step of each curve. Reads what a killed run has written: it loses the points of the last two minutes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Of each tag only the last event is kept in memory.
    kept = dict.fromkeys(("scalars", "images", "tensors", "histograms", "compressedHistograms", "audio"), 1)
    events = EventAccumulator(str(folder), size_guidance=kept).Reload()
    return {tag: events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]}

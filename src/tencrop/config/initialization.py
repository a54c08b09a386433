"""Finds the file of training.init.checkpoint without importing torch, so that a missing one is refused at once."""

from __future__ import annotations

from pathlib import Path

from tencrop.config.schema import Init, UserError

CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")


def source_file(init: Init, run_dir: Path) -> Path | None:
    """The file of weights: init.checkpoint itself, or last.ckpt of the run folder that it names.

    None without init.checkpoint. Also None if the file is gone and run_dir has a checkpoint, which a run continues from
    without it. Raises UserError if the file is missing otherwise.
    """
    if init.checkpoint is None:
        return None
    path = Path(init.checkpoint)
    if path.is_dir():
        path /= "checkpoints/last.ckpt"
    if path.is_file():
        return path
    if any((run_dir / name).exists() for name in CHECKPOINTS):
        return None
    raise UserError(
        f"training.init.checkpoint={init.checkpoint}: there is no file {path}; give a run folder, a checkpoint or"
        " a file of weights"
    )

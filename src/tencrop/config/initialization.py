"""Finds the weights that a run starts from (training.init) and those of its teacher (training.distill).

Does not import torch, so that a missing file is refused at once.
"""

from __future__ import annotations

from pathlib import Path

from tencrop.config.schema import Distill, Init, UserError

CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")


def source_file(init: Init, run_dir: Path) -> Path | None:
    """The file of weights: init.checkpoint itself, or last.ckpt of the run folder that it names.

    None without init.checkpoint. Also None if the file is gone and run_dir has a checkpoint, which a run continues from
    without it. Raises UserError if the file is missing otherwise.
    """
    if init.checkpoint is None:
        return None
    if not (path := _weights_file(init.checkpoint)).is_file() and any(
        (run_dir / name).exists() for name in CHECKPOINTS
    ):
        return None
    return _existing(path, f"training.init.checkpoint={init.checkpoint}")


def teacher_file(distill: Distill) -> Path:
    """The file of the teacher's weights: distill.teacher itself, or last.ckpt of the run folder that it names.

    Raises UserError if it is missing, or if distill.model names a network that its run names already, or does not name
    the network of a file outside of a run folder.
    """
    assert distill.teacher is not None
    key = f"training.distill.teacher={distill.teacher}"
    path = _existing(_weights_file(distill.teacher), key)
    run_dir = run_of_teacher(path)
    if run_dir is None and distill.model is None:
        raise UserError(f"{key}: is not in a run folder; name its network with training.distill.model=NAME")
    if run_dir is not None and distill.model is not None:
        raise UserError(
            f"training.distill.model={distill.model}: the run folder {run_dir} names the network already; leave it out"
        )
    return path


def run_of_teacher(path: Path) -> Path | None:
    """The run folder of RUN/checkpoints/FILE; None for a file elsewhere."""
    folder = path.absolute().parent
    is_run = folder.name == "checkpoints" and (folder.parent / "config.yaml").exists()
    return folder.parent if is_run else None


def _weights_file(name: str) -> Path:
    path = Path(name)
    return path / "checkpoints/last.ckpt" if path.is_dir() else path


def _existing(path: Path, key: str) -> Path:
    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}; give a run folder, a checkpoint or a file of weights")
    return path

"""Finds the weights that a run starts from (training.init) and those of its teacher (training.distill).

Does not import torch, so that a missing file is refused at once. A run folder stands for its final weights, as in the
error tables; a checkpoint of an unfinished run is used only where its file is named.
"""

from __future__ import annotations

from pathlib import Path

from tencrop.config.documents import read_json
from tencrop.config.schema import Distill, Init, UserError

CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")


def source_file(init: Init, run_dir: Path) -> Path | None:
    """The file of weights: init.checkpoint itself, or last.ckpt of the run folder that it names.

    None without init.checkpoint. Also None if the file is gone and run_dir has a checkpoint, which a run continues from
    without it. Raises UserError if the file is missing otherwise, or if the run folder's training is not complete.
    """
    if init.checkpoint is None:
        return None
    if not (path := _weights_file(init.checkpoint)).is_file() and _is_begun(run_dir):
        return None
    return _usable(path, "training.init.checkpoint", init.checkpoint, run_dir)


def teacher_file(distill: Distill, run_dir: Path) -> Path:
    """The file of the teacher's weights: distill.teacher itself, or last.ckpt of the run folder that it names.

    run_dir: the student's. Raises UserError if the file is missing, if the teacher's run folder is not complete, or if
    distill.model names a network that its run names already, or does not name the network of a file outside of a run
    folder.
    """
    assert distill.teacher is not None
    path = _usable(_weights_file(distill.teacher), "training.distill.teacher", distill.teacher, run_dir)
    teachers_run = run_of_teacher(path)
    if teachers_run is None and distill.model is None:
        raise UserError(
            f"training.distill.teacher={distill.teacher}: is not in a run folder; name its network with"
            " training.distill.model=NAME"
        )
    if teachers_run is not None and distill.model is not None:
        raise UserError(
            f"training.distill.model={distill.model}: the run folder {teachers_run} names the network already; leave it"
            " out"
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


def _is_begun(run_dir: Path) -> bool:
    return any((run_dir / name).exists() for name in CHECKPOINTS)


def _usable(path: Path, key: str, value: str, run_dir: Path) -> Path:
    """`path`, the file of weights that key=value names for the run in run_dir."""
    if not path.is_file():
        raise UserError(f"{key}={value}: there is no file {path}; give a run folder, a checkpoint or a file of weights")
    manifest = Path(value) / "manifest.json"
    # A run that was begun keeps its source: run_folder.py refuses it if the weights have changed since.
    if manifest.is_file() and not _is_begun(run_dir):
        remedy = "restore it from a copy, or name a checkpoint file of it"
        shape = {"result": {"status": str}}
        status = read_json(manifest, shape, what="the manifest of a run folder", remedy=remedy)["result"]["status"]
        if status != "complete":
            raise UserError(
                f"{key}={value}: the training of this run folder is not complete ({status}); train it to its end, or"
                f" name the file to use its weights as they are: {key}={path}"
            )
    return path

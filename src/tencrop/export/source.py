"""What export.py exports: a checkpoint in a run folder, and the folder to write. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import Config, ExportConfig, UserError
from tencrop.config.run_config import is_run_folder
from tencrop.config.writable import check_writable
from tencrop.records.manifest import RunManifest
from tencrop.records.run_folder import read_run_manifest

EXPORTS = Path("exports")
FILES = {"safetensors": "model.safetensors", "torch_export": "model.pt2", "onnx": "model.onnx"}
# torch's exporter builds the file with the first two; the third runs it for the comparison
NEEDED_BY_ONNX = ("onnx", "onnxscript", "onnxruntime")


class ExportSource(NamedTuple):
    """A checkpoint, its run, and how it will be exported."""

    checkpoint: Path
    run_dir: Path
    config: Config  # of the run
    manifest: RunManifest  # of the run
    format: str  # one of FILES
    ema: bool | None  # as in evaluate.py
    out: Path

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        return self.manifest["data"]["classes"]

    @property
    def label(self) -> str:
        """NAME/seedK-HASH of the run, without the folder that it lies in."""
        return f"{self.run_dir.parent.name}/{self.run_dir.name}"


def export_source(config: ExportConfig) -> ExportSource:
    """Check the command. Raises UserError if the checkpoint is in no run folder, or the output exists already."""
    if config.checkpoint is None:
        raise UserError("checkpoint: which one? Give checkpoint=RUN/checkpoints/last.ckpt")
    path = Path(config.checkpoint)
    if not path.is_file():
        problem = (
            "is a folder; name a file such as RUN/checkpoints/last.ckpt" if path.is_dir() else "there is no such file"
        )
        raise UserError(f"checkpoint={path}: {problem}")
    run_dir = path.absolute().parent.parent
    if not is_run_folder(run_dir):
        raise UserError(
            f"checkpoint={path}: is not in a run folder (RUN/config.yaml, RUN/manifest.json, RUN/checkpoints/), so its"
            " network, data and recipe are not known; name a checkpoint where train.py has written it"
        )
    # find_spec does not import them, so a missing package is reported at once.
    missing = [name for name in NEEDED_BY_ONNX if config.format == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx: needs the package {missing[0]}; install it with: pip install 'tencrop[onnx]'")
    source = ExportSource(
        path,
        run_dir,
        config_of_run(run_dir, [], conf=CONF),
        read_run_manifest(run_dir),
        config.format,
        config.ema,
        Path(config.output) if config.output is not None else _default_output(config, path, run_dir),
    )
    # Never overwritten: a card that was edited by hand, with a license, would be lost.
    if source.out.exists():
        raise UserError(f"{source.out}: is there already; delete it, or name another folder with output=DIR")
    check_writable(source.out / "README.md", remedy="make room, or name another folder with output=DIR")
    return source


def _default_output(config: ExportConfig, path: Path, run_dir: Path) -> Path:
    """exports/NAME-seedK-HASH, with what differs from the default behind it."""
    parts = {
        # So exports of best.ckpt, of raw weights or of another format do not collide with the default one.
        path.stem: path.stem != "last",
        f"ema_{config.ema}".lower(): config.ema is not None,
        config.format: config.format != "safetensors",
    }
    return EXPORTS / "-".join(
        [run_dir.parent.name, run_dir.name, *(part for part, differs in parts.items() if differs)]
    )

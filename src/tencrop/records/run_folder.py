"""The folder of a run: made, or found again by the same configuration, before anything is trained.

Called by train.py. Holds config.yaml, manifest.json, code.diff, metrics.jsonl, checkpoints/, predictions/, tracking/.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tencrop.config import Config, UserError, run_path
from tencrop.config.documents import NotEmpty, read_json
from tencrop.config.launch import is_first_process
from tencrop.data.manifest import RUN_DATA_SHAPE, write_whole
from tencrop.records.masking import mask_values
from tencrop.records.provenance import changed_split, code_diff, data_facts, provenance
from tencrop.training.metric_rows import last_digest

_TEXT = (str, None)
_SESSION = {
    "started": str,
    "command": str,
    "code": {"revision": _TEXT, "diff_sha256": _TEXT, "learning_sha256": str},
    "hardware": {
        "host": str,
        "cpu": str,
        "num_cores": int,
        "memory_bytes": int,
        "gpus": [str],
        "num_torch_threads": int,
    },
}
SHAPE = {
    "tencrop": str,
    "name": str,
    "data": RUN_DATA_SHAPE,
    "packages": {str: str},
    "sessions": NotEmpty(_SESSION),
    "result": {"status": str, "weights_sha256": _TEXT, "ema_sha256?": _TEXT, "metrics_digest?": _TEXT},
}
RUNNING = {"status": "running", "weights_sha256": None, "ema_sha256": None}


def run_folder(config: Config, data_manifest: dict[str, Any]) -> Path:
    """The run's folder, with its configuration and manifest in it; only the first process of several writes.

    A folder that another version of the code began is continued only with `allow_other_code`, unless it is complete;
    one that another process is writing to is refused. Raises UserError, also where the folder cannot be written.
    """
    folder = run_path(config)
    if not is_first_process():
        return folder
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "predictions").mkdir(exist_ok=True)
        _lock(folder)
        if (folder / "manifest.json").exists():
            _refuse_other_data(folder, config, read_manifest(folder)["data"], data_facts(config, data_manifest))
        if not is_complete(folder):
            _write_records(folder, config, provenance(config, data_manifest))
    except OSError as error:
        raise UserError(
            f"runs={config.runs}: cannot write {error.filename or folder} ({os.strerror(error.errno or 0)});"
            " make room, or name another folder with runs=DIR"
        ) from error
    return folder


def finish(folder: Path, *, status: str, weights_sha256: str | None, ema_sha256: str | None = None) -> None:
    """Record how training ended: status complete | interrupted | diverged, and the hashes of its weights."""
    if is_first_process():
        manifest = read_manifest(folder)
        if manifest["result"]["status"] == "complete":  # its metrics were whole then; now they may be damaged
            digest = manifest["result"].get("metrics_digest")
        else:
            digest = last_digest(folder / "metrics.jsonl")
        result = {"status": status, "weights_sha256": weights_sha256, "ema_sha256": ema_sha256}
        manifest["result"] = result | {"metrics_digest": digest}
        _write_manifest(folder, manifest)


def is_complete(folder: Path) -> bool:
    """Whether training has ended in this folder."""
    return (folder / "manifest.json").exists() and read_manifest(folder)["result"]["status"] == "complete"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The run's manifest; UserError where there is none, or it is broken."""
    mend = "bring it back from a copy, or delete the folder and train again"
    manifest = read_json(folder / "manifest.json", SHAPE, what="the manifest of a run folder", mend=mend)
    manifest["result"].setdefault("ema_sha256", None)  # as the first runs had it
    return manifest


def _write_records(folder: Path, config: Config, origin: dict[str, Any]) -> None:
    if not (folder / "manifest.json").exists():
        values = OmegaConf.to_yaml(OmegaConf.create(mask_values(dataclasses.asdict(config))))
        write_whole(folder / "config.yaml", values.encode())
        write_whole(folder / "code.diff", code_diff().encode())
        first = origin.pop("session")
        manifest = {**origin, "sessions": [first], "result": dict(RUNNING)}
    else:
        manifest = read_manifest(folder)
        _refuse_other_code(folder, config, manifest["sessions"][-1], origin["session"])
        manifest["sessions"].append(origin["session"])
        manifest["result"] = dict(RUNNING)
    _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_whole(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def _refuse_other_code(folder: Path, config: Config, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["code"]["learning_sha256"] != now["code"]["learning_sha256"] and not config.allow_other_code:
        revision = (before["code"]["revision"] or "outside git")[:12]
        raise UserError(
            f"{folder}: begun by another version of the code ({revision}, {before['started']});"
            " check that version out, or continue with allow_other_code=true, or delete the folder"
        )


def _refuse_other_data(folder: Path, config: Config, before: dict[str, Any], now: dict[str, Any]) -> None:
    if split := changed_split(before, now):
        raise UserError(
            f"data.root={config.data.root}: its {split} images are not those that {folder} was begun with;"
            " name the former data.root, or delete the run folder"
        )


def _lock(folder: Path) -> None:
    """Hold the folder until this process ends; UserError when another process holds it.

    The descriptor is left open on purpose: the kernel releases the lock with the process, however it dies.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{folder}: another process is writing to this run; wait for it, or stop it") from error
        # a file system without locks (some Lustre mounts): go on without

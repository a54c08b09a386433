"""The folder of a run: made, or found again by the same configuration, before anything is trained.

Called by train.py. Holds config.yaml, manifest.json, code.diff, metrics.jsonl, checkpoints/, predictions/, tracking/.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tencrop.config import Config, UserError, run_path
from tencrop.config.documents import NotEmpty, read_json
from tencrop.config.launcher import is_first_process
from tencrop.config.loader import CONFIG_FORMAT
from tencrop.config.run_config import (
    config_sha256,
    read_config,
    read_written_config,
)
from tencrop.config.writable import check_writable
from tencrop.data.store.manifest import RUN_DATA_SHAPE
from tencrop.files import atomic_write
from tencrop.records.provenance import changed_split, code_diff, data_facts, differences, provenance, sessions_of
from tencrop.records.redaction import redact_values
from tencrop.training.metric_rows import last_digest

_TEXT = (str, None)
_HASHES = {"weights_sha256": _TEXT, "ema_sha256?": _TEXT}
_SESSION = {
    "started": str,
    "command": str,
    "code": {"revision": _TEXT, "diff_sha256": _TEXT, "learning_sha256": str, "not_known?": str, "installed?": str},
    "hardware": {
        "not_known?": str,
        "host": str,
        "cpu": str,
        "num_cores": int,
        "memory_bytes": int,
        "gpus": [str],
        "num_torch_threads": int,
    },
    "packages?": {str: str},
}
SHAPE = {
    "tencrop": str,
    "name": str,
    "data": RUN_DATA_SHAPE,
    "packages?": {str: str},  # earlier code's, of the first session
    "sessions": NotEmpty(_SESSION),
    "result": {"status": str, **_HASHES, "metrics_digest?": _TEXT, "ended_with?": _HASHES},
}
HASHES = ("weights_sha256", "ema_sha256")
RUNNING = {"status": "running", **dict.fromkeys(HASHES)}
ROOM = "make room, or name another folder with runs=DIR"
MEND = "bring it back from a copy, or delete the folder and train again"


def run_folder(config: Config, data_manifest: dict[str, Any], *, total_steps: int | None = None) -> Path:
    """The run's folder, with its configuration and manifest in it; only the first process of several writes.

    total_steps: of the training that follows; None where none does, as the run is complete. Where the manifest says so
    too, nothing is written: the result of a run can be shown from a read-only folder. A complete run that is trained on
    (its last checkpoint is damaged, or gone) must end with the weights that it had: `finish` compares.
    A folder that another version of the code began is continued only with `allow_other_code`; one that another process
    is writing to is refused. Raises UserError, also where the folder cannot be written.
    """
    folder = run_path(config)
    if not is_first_process():
        return folder
    is_begun = (folder / "manifest.json").exists()
    if is_begun:
        _refuse_other_data(folder, config, read_run_manifest(folder)["data"], data_facts(config, data_manifest))
        read_config(folder)  # whoever evaluates the run reads it: refused now, not when training has ended
    elif any((folder / "checkpoints").glob("*.ckpt")):  # none is written before the manifest
        raise UserError(f"{folder}: has checkpoints and no manifest.json that says whose; {MEND}")
    if total_steps is None and is_begun and is_complete(folder):
        return folder
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "predictions").mkdir(exist_ok=True)
        _lock(folder)
        check_writable(folder / "checkpoints" / "last.ckpt", folder / "predictions" / "scores.safetensors", mend=ROOM)
        _write_records(folder, config, provenance(config, data_manifest), total_steps)
    except OSError as error:
        raise UserError(
            f"runs={config.runs}: cannot write {error.filename or folder} ({os.strerror(error.errno or 0)}); {ROOM}"
        ) from error
    return folder


def finish(folder: Path, *, status: str, weights_sha256: str | None, ema_sha256: str | None = None) -> str | None:
    """Record how training ended: status complete | interrupted | diverged, and the hashes of its weights.

    Returns a sentence where the run was complete before and has now ended with other weights, else None.
    """
    if not is_first_process():
        return None
    manifest = read_run_manifest(folder)
    before = manifest["result"].get("ended_with")
    now = {"weights_sha256": weights_sha256, "ema_sha256": ema_sha256}
    result = {"status": status, **now}
    if manifest["result"]["status"] == "complete":  # its metrics were whole then; now they may be damaged
        result["metrics_digest"] = manifest["result"].get("metrics_digest")
    else:
        result["metrics_digest"] = last_digest(folder / "metrics.jsonl")
    if before is not None and (status != "complete" or before != now):
        result["ended_with"] = before
    if manifest["result"] != result:  # else it stands there already, maybe in a read-only folder
        _write_manifest(folder, manifest | {"result": result})
    if before is None or status != "complete" or before == now:
        return None
    return (
        f"{folder}: was complete before and has now ended with other weights ({str(weights_sha256)[:8]} and not"
        f" {str(before['weights_sha256'])[:8]}); what was evaluated before is of those, and the manifest names both"
    )


def is_complete(folder: Path) -> bool:
    """Whether training has ended in this folder."""
    return (folder / "manifest.json").exists() and read_run_manifest(folder)["result"]["status"] == "complete"


def read_run_manifest(folder: Path) -> dict[str, Any]:
    """The run's manifest; UserError where there is none, or it is broken."""
    manifest = read_json(folder / "manifest.json", SHAPE, what="the manifest of a run folder", mend=MEND)
    manifest["result"].setdefault("ema_sha256", None)  # as the first runs had it
    return manifest


def _write_records(folder: Path, config: Config, origin: dict[str, Any], total_steps: int | None) -> None:
    for facts in (origin["session"]["code"], origin["session"]["hardware"]):
        if "not_known" in facts:
            print(f"{folder}: recorded as not known: {facts['not_known']}", file=sys.stderr)
    if not (folder / "manifest.json").exists():
        content = {"config_format": CONFIG_FORMAT, **redact_values(dataclasses.asdict(config))}
        values = OmegaConf.to_yaml(OmegaConf.create(content))
        atomic_write(folder / "config.yaml", values.encode())
        atomic_write(folder / "code.diff", code_diff().encode())
        first = origin.pop("session")
        facts = {"run_id": uuid.uuid4().hex, "total_steps": total_steps}  # checkpoints repeat both: whose are they?
        facts["config_sha256"] = config_sha256(read_written_config(folder / "config.yaml"))
        manifest = {**facts, **origin, "sessions": [first], "result": dict(RUNNING)}
    else:
        manifest = read_run_manifest(folder)
        if manifest["result"]["status"] == "complete":
            print(f"{folder}: was complete, and its last checkpoint is not: it is trained again", file=sys.stderr)
        before, now = sessions_of(manifest)[-1], origin["session"]
        _refuse_other_code(folder, config, before, now)
        for line in differences(before, now):
            print(f"{folder}: differs from the session before: {line}", file=sys.stderr)
        manifest["sessions"].append(now)
        manifest["result"] = RUNNING | _ended_with(manifest["result"])
    _write_manifest(folder, manifest)


def _ended_with(result: dict[str, Any]) -> dict[str, Any]:
    """The hashes that a run must end with again, of one that was complete; kept until it is."""
    if result["status"] == "complete":
        return {"ended_with": {key: result.get(key) for key in HASHES}}
    return {key: value for key, value in result.items() if key == "ended_with"}


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    atomic_write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def _refuse_other_code(folder: Path, config: Config, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["code"]["learning_sha256"] != now["code"]["learning_sha256"] and not config.allow_other_code:
        code = before["code"]
        place = f"installed, {code['installed']}" if "installed" in code else "outside git"
        revision = (code["revision"] or "")[:12] or ("unknown" if "not_known" in code else place)
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

"""Creates the folder of a run, or finds it again for the same configuration, before training starts.

A run folder contains config.yaml, manifest.json, code.diff, metrics.jsonl, checkpoints/, predictions/ and tracking/.
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

from omegaconf import OmegaConf

from tencrop.config import Config, UserError, run_path
from tencrop.config.documents import Document, NotEmpty, read_json
from tencrop.config.launcher import is_first_process
from tencrop.config.loader import CONFIG_FORMAT
from tencrop.config.run_config import (
    config_sha256,
    read_config,
    read_written_config,
)
from tencrop.config.writable import check_writable
from tencrop.data.store.manifest import RUN_DATA_SHAPE, manifest_sha256
from tencrop.files import atomic_write
from tencrop.records.manifest import Hashes, Outcome, Provenance, RunData, RunManifest, Session
from tencrop.records.provenance import changed_split, code_diff, data_facts, differences, provenance, sessions_of
from tencrop.records.redaction import redact_text, redact_values
from tencrop.training.metric_rows import last_digest

# The manifest's shape: only the fields that some reader uses. Others may be added without breaking old readers.
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
_LOADED = {"checkpoint": str, "weights": str, "weights_sha256": str}
SHAPE = {
    "tencrop": str,
    "name": str,
    "data": RUN_DATA_SHAPE,
    "packages?": {str: str},  # of the first session, written by earlier code (provenance.sessions_of)
    "sessions": NotEmpty(_SESSION),
    "init?": _LOADED,  # what training.init loaded
    "teacher?": _LOADED,  # the teacher of training.distill
    # ended_with: hashes with which a complete run ended before it had to be trained again
    "result": {"status": str, **_HASHES, "metrics_digest?": _TEXT, "ended_with?": _HASHES},
    "sha256?": str,  # of everything else
}
ROOM = "make room, or name another folder with runs=DIR"
REMEDY = "restore it from a copy, or delete the folder and train again"


def run_folder(
    config: Config,
    data_manifest: Document,
    *,
    total_steps: int | None = None,
    init: dict[str, str] | None = None,
    teacher: dict[str, str] | None = None,
) -> Path:
    """Create or reopen the run's folder and write its configuration and manifest; only rank 0 writes.

    total_steps: number of optimizer steps of the training that follows, or None if the run is complete and nothing is
    trained. If the manifest also says complete, nothing is written: a result can be shown from a read-only folder.
    init: which weights the run starts from (training/initial_weights.py); None if the seed draws them, or if their file
    is gone and the run does not need it any more.
    teacher: the weights of the teacher (training/distillation.py); None without one, or if nothing is trained.
    A complete run is trained again if its last checkpoint is damaged or missing, and must then end with the same
    weights; `finish` compares them.

    Raises UserError if the folder was begun by another version of the code (unless `allow_other_code`), with other data
    or from other initial weights or another teacher, if another process is writing to it, or if it cannot be written.
    """
    folder = run_path(config)
    # Other ranks need the path only. They wait in launch_ranks until rank 0 has passed this function.
    if not is_first_process():
        return folder
    is_begun = (folder / "manifest.json").exists()
    if is_begun:
        _refuse_other_data(folder, config, read_run_manifest(folder)["data"], data_facts(config, data_manifest))
        _refuse_other_weights(folder, "training.init.checkpoint", read_run_manifest(folder).get("init"), init)
        _refuse_other_weights(folder, "training.distill.teacher", read_run_manifest(folder).get("teacher"), teacher)
        read_config(folder)  # the final evaluation reads it: a damaged file is refused now, not after training
    elif any((folder / "checkpoints").glob("*.ckpt")):  # the manifest is written before any checkpoint
        raise UserError(f"{folder}: has checkpoints, but no manifest.json that tells which run wrote them; {REMEDY}")
    if total_steps is None and is_begun and is_complete(folder):
        return folder  # before the lock, which needs write access
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "predictions").mkdir(exist_ok=True)
        _lock(folder)
        # A subfolder may be a link to another disk, with permissions and quotas of its own.
        check_writable(folder / "checkpoints" / "last.ckpt", folder / "predictions" / "scores.safetensors", remedy=ROOM)
        origin = provenance(config, data_manifest)
        if init is not None:
            origin["init"] = init | {"checkpoint": redact_text(init["checkpoint"])}
        if teacher is not None:
            origin["teacher"] = teacher | {"checkpoint": redact_text(teacher["checkpoint"])}
        _write_records(folder, config, origin, total_steps)
    except OSError as error:
        raise UserError(
            f"runs={config.runs}: cannot write {error.filename or folder} ({os.strerror(error.errno or 0)}); {ROOM}"
        ) from error
    return folder


def resolved_config(config: Config) -> bytes:
    """The content of config.yaml for a validated configuration, without credentials."""
    # asdict: every default is written out, so later changes of conf/ do not matter
    content = {"config_format": CONFIG_FORMAT, **redact_values(dataclasses.asdict(config))}
    return OmegaConf.to_yaml(OmegaConf.create(content)).encode()


def finish(folder: Path, *, status: str, weights_sha256: str | None, ema_sha256: str | None = None) -> str | None:
    """Record how training ended: status (complete | interrupted | diverged), and the hashes of its weights.

    Returns a warning if the run was complete before and has now ended with other weights, otherwise None.
    """
    if not is_first_process():
        return None
    manifest = read_run_manifest(folder)
    # Set only if the run was complete and is being trained again (_ended_with).
    before = manifest["result"].get("ended_with")
    now: Hashes = {"weights_sha256": weights_sha256, "ema_sha256": ema_sha256}
    result: Outcome = {"status": status, "weights_sha256": weights_sha256, "ema_sha256": ema_sha256}
    # The digest over all rows of metrics.jsonl, by which a report detects a damaged or edited file. For a run that was
    # complete it is not taken again, since the file may have been damaged in the meantime.
    if manifest["result"]["status"] == "complete":
        result["metrics_digest"] = manifest["result"].get("metrics_digest")
    else:
        result["metrics_digest"] = last_digest(folder / "metrics.jsonl")
    if before is not None and (status != "complete" or before != now):
        result["ended_with"] = before
    if manifest["result"] != result:  # an unchanged manifest is not rewritten: the folder may be read-only
        _write_manifest(folder, {**manifest, "result": result})
    if before is None or status != "complete" or before == now:
        return None
    return (
        f"{folder}: was complete before and has now ended with other weights ({str(weights_sha256)[:8]} instead of"
        f" {str(before['weights_sha256'])[:8]}); earlier evaluations used the former, and the manifest names both"
    )


def is_complete(folder: Path) -> bool:
    """Whether the training in this folder is complete."""
    return (folder / "manifest.json").exists() and read_run_manifest(folder)["result"]["status"] == "complete"


def read_run_manifest(folder: Path) -> RunManifest:
    """The run's manifest, without its digest. Raises UserError if it is missing, broken or damaged."""
    what, path = "the manifest of a run folder", folder / "manifest.json"
    content = read_json(path, SHAPE, what=what, remedy=REMEDY)
    # Manifests of earlier code have no digest.
    if content.pop("sha256", None) not in (None, manifest_sha256(content)):
        raise UserError(f"{path}: was changed or damaged after it was written; {REMEDY}")
    manifest: RunManifest = content
    manifest["result"].setdefault("ema_sha256", None)  # the first runs did not record it
    return manifest


def _write_records(folder: Path, config: Config, origin: Provenance, total_steps: int | None) -> None:
    session, parts = origin["session"], (origin["session"]["code"], origin["session"]["hardware"])
    for facts in parts:
        if "not_known" in facts:
            print(f"{folder}: recorded as not known: {facts['not_known']}", file=sys.stderr)
    # The manifest is written last, so its presence means that config.yaml and code.diff are complete.
    if not (folder / "manifest.json").exists():
        atomic_write(folder / "config.yaml", resolved_config(config))
        atomic_write(folder / "code.diff", code_diff().encode())
        manifest: RunManifest = {
            # Checkpoints contain both, which ties them to this run.
            "run_id": uuid.uuid4().hex,
            "total_steps": total_steps,
            # Of the file as read back, with redacted values and YAML's types, since that is what later readers hash.
            "config_sha256": config_sha256(read_written_config(folder / "config.yaml")),
            "tencrop": origin["tencrop"],
            "name": origin["name"],
            "model": origin["model"],
            "seeds": origin["seeds"],
            "data": origin["data"],
            "sessions": [session],
            "result": _running(None),
        }
        if "init" in origin:
            manifest["init"] = origin["init"]
        if "teacher" in origin:
            manifest["teacher"] = origin["teacher"]
    else:
        manifest = read_run_manifest(folder)
        if manifest["result"]["status"] == "complete":
            print(f"{folder}: was complete, but has no intact last checkpoint; training it again", file=sys.stderr)
        before = sessions_of(manifest)[-1]
        _refuse_other_code(folder, config, before, session)
        for line in differences(before, session):
            print(f"{folder}: differs from the last session: {line}", file=sys.stderr)
        manifest["sessions"].append(session)
        manifest["result"] = _running(_ended_with(manifest["result"]))
    _write_manifest(folder, manifest)


def _ended_with(result: Outcome) -> Hashes | None:
    """The weight hashes that a formerly complete run must end with again; carried along until it is complete."""
    if result["status"] == "complete":
        return {"weights_sha256": result["weights_sha256"], "ema_sha256": result["ema_sha256"]}
    return result.get("ended_with")


def _running(ended_with: Hashes | None) -> Outcome:
    running: Outcome = {"status": "running", "weights_sha256": None, "ema_sha256": None}
    return running if ended_with is None else {**running, "ended_with": ended_with}


def _write_manifest(folder: Path, manifest: RunManifest) -> None:
    content = {**manifest, "sha256": manifest_sha256(manifest)}
    atomic_write(folder / "manifest.json", (json.dumps(content, indent=1) + "\n").encode())


def _refuse_other_code(folder: Path, config: Config, before: Session, now: Session) -> None:
    # Half a run with one version and half with another has weights that no version of the code can reproduce.
    if before["code"]["learning_sha256"] != now["code"]["learning_sha256"] and not config.allow_other_code:
        code = before["code"]
        source = f"installed, {code['installed']}" if "installed" in code else "outside git"
        revision = (code["revision"] or "")[:12] or ("unknown" if "not_known" in code else source)
        raise UserError(
            f"{folder}: begun by another version of the code ({revision}, {before['started']});"
            " check that version out, or continue with allow_other_code=true, or delete the folder"
        )


def _refuse_other_data(folder: Path, config: Config, before: RunData, now: RunData) -> None:
    if split := changed_split(before, now):
        raise UserError(
            f"data.root={config.data.root}: its {split} images are not those that {folder} was begun with;"
            " name the former data.root, or delete the run folder"
        )


def _refuse_other_weights(folder: Path, key: str, before: dict[str, str] | None, now: dict[str, str] | None) -> None:
    """Raise UserError if the weights that `key` names have changed since the run began; if either is None, nothing.

    A run that resumes needs no initial weights, and a complete one needs no teacher.
    """
    if before is not None and now is not None and before["weights_sha256"] != now["weights_sha256"]:
        raise UserError(
            f"{key}: {now['checkpoint']} holds other weights ({now['weights_sha256'][:8]}) than"
            f" {folder} was begun with ({before['weights_sha256'][:8]}); give the new weights another path, or delete"
            " the run folder"
        )


def _lock(folder: Path) -> None:
    """Lock the folder until this process ends. Raises UserError if another process holds the lock.

    The descriptor is left open on purpose: the kernel releases the lock when the process dies, whatever the cause. A
    lock file with a process id would survive a kill, and ids are not comparable across machines.
    """
    # lockf (fcntl) rather than flock: it also works between the clients of an NFS server.
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{folder}: another process is writing to this run; wait for it, or stop it") from error
        # Any other error means a file system without locks (some Lustre mounts): continue without one.

"""Writes what a job needs into its folder, submits it, and records its number."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tencrop.config import Cluster, Config, UserError, run_path
from tencrop.config.writable import check_writable
from tencrop.files import atomic_write
from tencrop.records.run_folder import resolved_config
from tencrop.submission.batch import Job, command
from tencrop.submission.snapshot import snapshot_folder, write_snapshot

RECORD = "submission.json"  # in each run folder: the job, its snapshot and its arguments
ANSWER_S = 60  # sbatch and squeue retry for a while when the controller is busy


class Submitted(NamedTuple):
    """A submitted job: its number, the snapshot that it runs from, and its log file or files."""

    number: str
    snapshot: Path
    logs: list[Path]


def check_sbatch() -> None:
    """Raise UserError if this machine cannot submit."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not found; submit on a login node of the cluster, or show the job with dry_run=true")


def submit(job: Job, cluster: Cluster, files: Mapping[str, bytes], runs: Sequence[Config]) -> Submitted:
    """Submit a job that trains `runs` (none for an evaluation) with the code in `files`.

    Before, writes the snapshot, and into each run folder the resolved configuration. Raises UserError, and removes what
    it has created, if SLURM refuses the job or a folder cannot be written.
    """
    snapshot = snapshot_folder(job.folder, files)
    folders = [run_path(config) for config in runs]
    check_writable(*(folder / RECORD for folder in [job.folder, *folders]), remedy="name another folder with runs=DIR")
    with _alone(folders[0].parent if folders else job.folder):
        number = _write_and_queue(job, cluster, files, runs)
        for config, folder in zip(runs, folders, strict=True):
            # The job exists from here on, so nothing is removed any more. The index of a task in an array is its seed.
            task = f"{number}_{config.seed}" if job.seeds else number
            record = {"job": task, "snapshot": str(snapshot), "arguments": list(job.words)}
            atomic_write(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    numbers = [(number, str(seed)) for seed in job.seeds] or [(number, "")]
    logs = [Path(str(job.log).replace("%j", one).replace("%A", one).replace("%a", seed)) for one, seed in numbers]
    return Submitted(number, snapshot, logs)


def active_job(config: Config) -> str | None:
    """The number of the job that was submitted for this run and has not ended; None if there is none."""
    path = run_path(config) / RECORD
    try:
        number = json.loads(path.read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: it prevents a mistake and decides nothing
        return None
    # The number becomes an argument of squeue, which would take a list or a cluster's name too.
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", str(number)) or shutil.which("squeue") is None:
        return None
    asked = ["squeue", "--noheader", f"--jobs={number}", "--format=%T"]
    found = _asked(asked)  # fails for a job long gone
    return number if found.stdout.strip() else None


def _write_and_queue(job: Job, cluster: Cluster, files: Mapping[str, bytes], runs: Sequence[Config]) -> str:
    """The number of the job, whose snapshot and configurations are then in place; removes what it wrote if it fails."""
    snapshot, folders = snapshot_folder(job.folder, files), [run_path(config) for config in runs]
    # Taken before anything is written: a refusal must not delete a run, or a snapshot of another job.
    new = [path for path in folders if not path.exists()]
    try:
        if write_snapshot(snapshot, files):
            new.append(snapshot)
        for config, folder in zip(runs, folders, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "manifest.json").exists():  # train.py compares it with the manifest from then on
                atomic_write(folder / "config.yaml", resolved_config(config))
        return _sbatch(command(job, cluster, snapshot))
    # Ctrl-C as well: sbatch may take a minute, and half a submission would look like a run.
    except BaseException:
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock against other submissions into `folder`, which wait; creates the folder.

    Submissions of the same code share a snapshot: one that SLURM refuses would delete it while another queues its job.
    """
    path = folder / ".submit.lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            # lockf, as for run folders: it also works on NFS. Where nothing can be locked, go without.
            with contextlib.suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_EX)
            if not _is_at(file, path):  # the one that held the lock has deleted the file
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sbatch(words: Sequence[str]) -> str:
    """The number of the job that `words` submit. Raises UserError, with SLURM's reason, if it is refused."""
    done = _asked(words)
    # In a federation of clusters the answer is NUMBER;CLUSTER.
    found = re.fullmatch(r"([0-9]+)(;.*)?", done.stdout.strip())
    if done.returncode or found is None:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"sbatch refused the job ({said}); change conf/cluster or hardware, nothing was submitted")
    return found[1]


def _asked(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A finished command of SLURM. Raises UserError if it does not answer, as when the controller is down."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired as error:
        message = f"{words[0]}: no answer within {ANSWER_S} s; sinfo shows whether the controller is up"
        raise UserError(message) from error

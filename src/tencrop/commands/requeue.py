"""Decides whether an interrupted SLURM job may be requeued; slurm/train.sbatch calls it with the arguments of train.py.

    python -m tencrop.commands.requeue ARGUMENTS

Exit codes: 0 requeue, 1 do not, 2 the arguments or the disk. A job that makes no progress, for example because each
start fills the memory, would be requeued forever otherwise.
"""

from __future__ import annotations

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the imports below, as in the other programs

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import check_words, expand_home, read_flags
from tencrop.cli.compose import compose_training, sweep_jobs
from tencrop.config import Config, UserError, run_path
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.documents import read_json
from tencrop.files import atomic_write

MAX_WITHOUT_PROGRESS = 3
FOLDER = ".requeues"  # below `runs`; one file per job, JOB.json


def requeue(words: Sequence[str], job: str) -> bool:
    """Whether job number `job`, `train.py WORDS`, may be requeued; prints the reason and counts the decision.

    It may if a checkpoint was written since the last decision for this job, or otherwise up to MAX_WITHOUT_PROGRESS
    times in a row. Raises UserError if the words do not compose.
    """
    flags = read_flags(words)
    jobs = sweep_jobs(check_words(flags.overrides, Config))
    configs = [compose_training(one, CONF, flags.config_dir) for one in jobs]
    runs = Path(expand_home(configs[0].runs))
    state = runs / FOLDER / f"{job}.json"
    # SLURM keeps the number of a requeued job, so the file of this number has the decisions before.
    before: dict[str, Any] = {"checkpoints": [], "num_without_progress": 0}
    if state.exists():
        shape = {"checkpoints": [int], "num_without_progress": int}
        try:
            before = read_json(state, shape, what="the count of this job's starts", remedy="counting from 0")
        except UserError as error:  # three starts more at most; giving up would cost the job
            print(error)
    # Of all runs, since a sweep trains one after the other: a new checkpoint of any of them is progress.
    checkpoints = [_written(runs / run_path(config).relative_to(config.runs)) for config in configs]
    num_without = 0 if checkpoints != before["checkpoints"] and any(checkpoints) else before["num_without_progress"] + 1
    # Counted before the answer: a job that is killed in between must not start afresh with three attempts.
    state.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(state, json.dumps({"checkpoints": checkpoints, "num_without_progress": num_without}).encode())
    if num_without == 0:
        print("requeueing the job, which resumes from its checkpoint")
    elif num_without <= MAX_WITHOUT_PROGRESS:
        print(f"requeueing the job; no new checkpoint, attempt {num_without} of {MAX_WITHOUT_PROGRESS}")
    else:
        print(f"not requeueing the job: no new checkpoint in {num_without} starts; submitting it again continues")
    return num_without <= MAX_WITHOUT_PROGRESS


def _written(run_dir: Path) -> int:
    """When the run's last checkpoint was written, in ns since 1970; 0 if there is none."""
    # The time of the file and not the step in it: reading that would import torch, which takes seconds.
    last = run_dir / "checkpoints" / "last.ckpt"
    return last.stat().st_mtime_ns if last.exists() else 0


def main() -> int:
    try:
        # In an array, SLURM_JOB_ID is each task's own number, so every seed has attempts of its own.
        return 0 if requeue(sys.argv[1:], os.environ["SLURM_JOB_ID"]) else 1
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = disk_sentence(error)
    print(f"error: {message}; not requeueing the job", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

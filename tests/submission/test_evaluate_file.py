"""slurm/evaluate.sbatch requeues an evaluation whose node has died, but not one that failed, and not forever."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evaluate(slurm):
    """evaluate(code, num_restarts, state) -> the finished batch file, whose srun exits with this code."""

    def run(code: int, num_restarts: int, state: str = "RUNNING") -> subprocess.CompletedProcess[str]:
        programs = {"srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": 'echo "scontrol $*"'}
        for name, text in programs.items():
            (slurm.folder / name).write_text(f"#!/bin/bash\n{text}\n")
        variables = {"SLURM_JOB_ID": "101", "SLURM_JOB_NODELIST": "here", "SLURM_RESTART_COUNT": str(num_restarts)}
        command = ["bash", str(ROOT / "slurm" / "evaluate.sbatch")]
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("code", "num_restarts", "state", "said"),
    [
        (75, 0, "RUNNING", "attempt 1 of 3\nscontrol requeue 101"),
        (137, 2, "RUNNING", "attempt 3 of 3\nscontrol requeue 101"),
        (75, 3, "RUNNING", "not requeueing the job: it was started 4 times"),
        (75, 0, "CANCELLED", None),
        (2, 0, "RUNNING", None),
        (0, 0, "RUNNING", None),
    ],
)
def test_only_an_interrupted_evaluation_is_requeued(evaluate, code, num_restarts, state, said):
    done = evaluate(code, num_restarts, state)
    assert done.returncode == code, done.stderr
    assert said is None or said in done.stdout
    assert ("scontrol requeue" in done.stdout) == (said is not None and "attempt" in said)

"""A checkout that tests may edit, and a stand-in for SLURM's programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from submission.checkout import copy_checkout

# Records the arguments of each call, and answers as sbatch does, with the number of the job.
SBATCH = """#!{python}
import json, os, pathlib, sys
calls = pathlib.Path(__file__).parent / "calls.jsonl"
with open(calls, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if refusal := os.environ.get("REFUSE"):
    sys.exit("sbatch: error: " + refusal)
print(f"{{100 + len(calls.read_text().splitlines())}};test")
"""
# Runs the program that follows the options.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
# Every job that is asked for is pending where the file `pending` lists it.
SQUEUE = """#!/bin/bash
grep -qx -- "${2#--jobs=}" "$(dirname "$0")/pending" 2>/dev/null && echo PENDING
exit 0
"""


class StandIn:
    """The folder of the stand-in programs."""

    def __init__(self, folder: Path):
        self.folder = folder

    def calls(self) -> list[list[str]]:
        """The arguments of each call of sbatch."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def start(self, call: list[str]) -> subprocess.CompletedProcess[str]:
        """Run the batch file of a call of sbatch as SLURM would, in the same folder."""
        (position,) = [place for place, word in enumerate(call) if word.endswith(".sbatch")]
        variables = {"SLURM_JOB_ID": "101", "SLURM_JOB_NODELIST": "here", "SLURM_CPUS_PER_TASK": "1"}
        return subprocess.run(["bash", *call[position:]], env=os.environ | variables, capture_output=True, text=True)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Stand-ins for sbatch, srun, squeue and scontrol, first in PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    programs = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "squeue": SQUEUE}
    for name, text in (programs | {"scontrol": "#!/bin/bash\n"}).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return StandIn(folder)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout's code, with a commit."""
    return copy_checkout(tmp_path / "checkout")

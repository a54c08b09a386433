"""A copy of a batch file, with other #SBATCH lines, finds the repository from whose root it is submitted."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BATCH_FILES = sorted((Path(__file__).parents[2] / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("batch_file", BATCH_FILES, ids=lambda path: path.stem)
def test_a_copy_runs_from_the_root_of_the_repository(batch_file, slurm, tmp_path):
    root = tmp_path / "repository"
    (root / "slurm").mkdir(parents=True)
    (root / "slurm" / "environment.sh").write_text("echo found $root; exit 0\n")
    shutil.copy(batch_file.with_name("train.sbatch"), root / "slurm")  # seeds.sbatch executes it
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(batch_file, tmp_path / "elsewhere" / "mine.sbatch")
    variables = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_SUBMIT_DIR": str(root)}
    done = subprocess.run(["bash", copy], env=os.environ | variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"found {root}\n"), done.stderr

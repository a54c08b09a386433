"""Ways to start a job: from any folder, through `sbatch --wrap`, and interactively."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from cluster.loopback import ROOT, Cluster

# Hydra reads what is within the single quotes as one text.
FOLDER = "prepared digits, [or] so"
WORDS = ["data=digits", f"data.root='{FOLDER}'"]
LAUNCHED = "from tencrop.config.launcher import launched; print(launched())"


@pytest.fixture(scope="module")
def variables(cluster: Cluster) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def test_arguments_arrive_as_typed_in_every_form_of_submission(cluster, variables, tmp_path):
    """Relative paths are those of the folder that the job is submitted from."""
    file = f"{ROOT}/slurm/prepare.sbatch"
    wrapped = f"data=digits \"data.root='{FOLDER}'\""
    forms = {
        "file": [file, *WORDS],
        "wrapped": ["--output=%j.log", "--wrap", f"{file} {wrapped}"],
        "bash": ["--output=%j.log", "--wrap", f"bash {file} {wrapped}"],
    }
    for name in forms:
        (tmp_path / name).mkdir()
    jobs = {name: cluster.submit(*words, cwd=tmp_path / name, variables=variables) for name, words in forms.items()}
    for name, job in jobs.items():
        job.wait()
        assert (tmp_path / name / FOLDER / "manifest.json").exists(), job.log


def test_a_wrapped_training_is_not_requeued_after_a_mistake(cluster, variables, tmp_path):
    """Without the file's #SBATCH lines: no number of cores, one task."""
    file = f"{ROOT}/slurm/train.sbatch"
    job = cluster.submit("--wrap", f"{file} hardware=nodes2x8 model=resnet18", cwd=tmp_path, variables=variables)
    job.wait("FAILED")
    output = (tmp_path / f"slurm-{job.number}.out").read_text()
    assert job.detail("ExitCode") == "2:0" and "hardware.devices x hardware.nodes = 16: 1 processes were st" in output


def test_a_copy_is_submitted_from_the_root_of_the_repository(cluster, variables, tmp_path):
    copy = tmp_path / "mine.sbatch"
    copy.write_text((ROOT / "slurm" / "train.sbatch").read_text())
    output = f"--output={tmp_path}/%j.log"
    for folder, words in ((ROOT, "error: model=x: there is no conf"), (tmp_path, "environment.sh: No such file")):
        job = cluster.submit(output, str(copy), "model=x", cwd=folder, variables=variables)
        job.wait("FAILED")
        assert job.detail("ExitCode") == "2:0" and words in (tmp_path / f"{job.number}.log").read_text()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["salloc", "--ntasks-per-node=8"], "None"),
        (["salloc", "--ntasks-per-node=8", "srun", "--pty", "--ntasks=1"], "None"),
        (["salloc", "--ntasks-per-node=8", "srun", "--pty", "--ntasks=1", "--job-name=mine"], "None"),
        (["srun", "--ntasks=8", "--pty", "--job-name=bash"], "None"),
        (
            ["salloc", "--ntasks-per-node=8", "srun", "--ntasks=2"],
            "Launched(launcher='srun', num_processes=2, num_per_",
        ),
        (["srun", "--ntasks=1", "bash", "-c", 'exec "$@"', "bash"], "None"),
        (["srun", "--nodes=2"], "Launched(launcher='srun', num_processes=2, num_per_node=1)"),
        (["srun", "--nodes=2", "--ntasks=3"], "Launched(launcher='srun', num_processes=3, num_per_node=0)"),
    ],
)
def test_only_steps_of_several_tasks_are_several_processes(command, expected, cluster, variables, monkeypatch):
    """In a terminal, where srun --pty opens a shell."""
    for name, value in {**cluster.environment, **variables}.items():
        monkeypatch.setenv(name, value)
    lines: list[bytes] = []

    def read(descriptor: int) -> bytes:
        lines.append(os.read(descriptor, 4096))
        return lines[-1]

    pty.spawn([*command, sys.executable, "-c", LAUNCHED], read)
    assert expected in b"".join(lines).decode()

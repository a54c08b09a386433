"""What SLURM granted against what the configuration asks for, planted in its variables."""

from typing import Any

import pytest

from tencrop.config import Hardware
from tencrop.doctor.slurm import judge_launch, judge_slurm

JOB = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "16", "SLURM_CPUS_PER_TASK": "8",
    "SLURM_GPUS_ON_NODE": "8",
}  # fmt: skip


def hardware(*, accelerator: Any = "gpu", devices: int = 8, nodes: int = 2) -> Hardware:
    return Hardware(accelerator, devices, nodes, workers="auto", max_micro_batch=None)


@pytest.mark.parametrize(
    ("changed", "asked", "num_cores", "state", "word"),
    [
        ({}, {}, 8, ["ok"], "SLURM_JOB_ID=7"),
        ({"SLURM_JOB_NUM_NODES": "1"}, {}, 8, ["ok", "error"], "hardware.nodes=2, but the job has 1"),
        ({"SLURM_GPUS_ON_NODE": "4"}, {}, 8, ["ok", "error"], "hardware.devices=8, but 4 GPUs"),
        ({}, {"devices": 4}, 8, ["ok", "warning"], "hardware.devices=4, but 8 GPUs"),
        ({}, {"accelerator": "cpu"}, 8, ["ok", "warning"], "8 GPUs are granted and not used"),
        ({}, {}, 1, ["ok", "error"], "SLURM_CPUS_PER_TASK=8, but this process may use 1"),
        ({"SLURM_CPUS_PER_TASK": "1"}, {}, 8, ["ok", "warning"], "one core a task"),
        ({"SLURM_CPUS_PER_TASK": ""}, {}, 8, ["ok", "warning"], "is not set"),
    ],
)
def test_a_job(changed, asked, num_cores, state, word):
    found = judge_slurm(JOB | changed, hardware(**asked), num_cores=num_cores)
    assert [finding.state for finding in found] == state and word in found[-1].text
    assert all(finding.remedy for finding in found[1:])


def test_outside_a_job():
    (found,) = judge_slurm({}, hardware(), num_cores=8)
    assert (found.state, found.text) == ("ok", "not in a job")


def test_processes_that_do_not_fit_the_hardware_are_an_error(monkeypatch):
    assert [found.state for found in judge_launch(hardware(nodes=1))] == ["ok"]
    (found,) = judge_launch(hardware())
    assert found.state == "error" and "hardware.nodes=2" in found.text
    srun = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "3"}
    for name, value in srun.items():
        monkeypatch.setenv(name, value)
    (found,) = judge_launch(hardware())
    assert found.state == "error" and "= 16: 3 processes were started by srun" in found.text

"""submit.py, data.stage and doctor.py on a real SLURM of two nodes on this machine."""

import json
import sys
import time
from pathlib import Path

import pytest

from cluster.loopback import ENDED, POLL_S, ROOT, Cluster
from submission.checkout import copy_checkout

# on one node, so that both tasks copy to the same disk
SETTINGS = """
defaults: [default, _self_]
cpus_per_task: 1
options: [--hold, --nodelist=n0]
environment: {{DISK_OF_NODE: "{disk}"}}
network: false
"""


@pytest.fixture
def variables(cluster: Cluster) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    return {"PATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def words(prepared_digits, tmp_path) -> list[str]:
    return [
        "experiment=lenet5_digits", "hardware=cpu", "hardware.workers=1", "tracker=none", "training.max_steps=2",
        f"data.root={prepared_digits}", f"runs={tmp_path}/the runs",
    ]  # fmt: skip


def test_a_queued_array_runs_the_code_that_was_submitted_and_copies_its_data_once(cluster, variables, words, tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "conf" / "cluster" / "loopback.yaml").write_text(SETTINGS.format(disk=tmp_path / "a disk"))
    own = ["seed=0,1", "cluster=loopback", "data.stage=$DISK_OF_NODE"]
    command = [sys.executable, str(checkout / "submit.py"), *words, *own]
    variables = variables | {"PYTHONPATH": str(checkout / "src")}
    said = cluster.run(*command, cwd=tmp_path, variables=variables)
    number = said.partition("job ")[2].split(",")[0].strip()
    (checkout / "src" / "tencrop" / "training" / "fit.py").write_text("raise RuntimeError('edited')\n")
    cluster.run("scontrol", "release", number)

    def states() -> list[str]:
        asked = ("squeue", "--noheader", "--states=all", "--array", f"--jobs={number}", "--format=%T")
        return cluster.run(*asked).split()

    while not set(states()) <= ENDED:
        time.sleep(POLL_S)
    logs = [path.read_text() for path in sorted(tmp_path.glob("the runs/lenet5_digits/slurm-*_*.log"))]
    assert states() == ["COMPLETED", "COMPLETED"], logs
    manifests = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("the runs/*/seed*/manifest.json"))]
    assert [manifest["seeds"]["seed"] for manifest in manifests] == [0, 1]
    assert {manifest["result"]["status"] for manifest in manifests} == {"complete"}
    assert "".join(logs).count("data.stage: copying") == 1 and len(list((tmp_path / "a disk").iterdir())) == 1
    assert all(path in said for path in (f"slurm-{number}_0.log", f"slurm-{number}_1.log"))


def test_a_partition_that_slurm_does_not_have_is_refused(cluster, variables, words, tmp_path):
    command = [sys.executable, str(ROOT / "submit.py"), *words, "cluster.partition=none"]
    said = cluster.run("bash", "-c", '"$@" 2>&1', "bash", *command, cwd=tmp_path, variables=variables, check=False)
    assert "sbatch refused the job" in said and "invalid partition specified: none" in said
    assert list(tmp_path.glob("the runs/*/*")) == []


def test_doctor_measures_between_the_nodes(cluster, variables, words, tmp_path):
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
    command = [*srun, sys.executable, str(ROOT / "doctor.py"), *words, "hardware.nodes=2", "json=true"]
    said = json.loads(cluster.run(*command, cwd=tmp_path, variables=variables))
    texts = {finding["check"]: finding["text"] for finding in said["findings"]}
    assert said["is_ready"] and "between 2 ranks (gloo)" in texts["all-reduce"], said
    assert "SLURM_JOB_NODELIST=n[0-1]" in texts["slurm"] and "between n" in texts["clocks"]
    hosts = {finding["check"]: finding["hosts"] for finding in said["findings"]}
    assert hosts["versions"] == ["n0", "n1"] and hosts["runs folder"] == ["n0"]

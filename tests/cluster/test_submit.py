"""submit.py, data.stage and doctor.py on a real SLURM of two nodes on this machine."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from cluster.loopback import ROOT, Cluster, Job
from submission.checkout import CHAIN, TABLE, copy_checkout

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
    Job(cluster, int(number), tmp_path).wait()
    logs = [path.read_text() for path in sorted(tmp_path.glob("the runs/lenet5_digits/slurm-*_*.log"))]
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


# The clock of the second node is ahead.
LATE = """
import os, time
if os.environ.get("SLURMD_NODENAME") == "n1":
    time.time = lambda time=time.time: time() + 7
"""
# The second rank's network fails in a collective operation, and its node has a limit that the other has not.
UNPLUGGED = """
import os, resource, sys, threading, time

def fail(*_, **__):
    raise RuntimeError("network is down")

def plant():
    while not hasattr(sys.modules.get("tencrop.doctor.ranks"), "judge_clocks"):
        time.sleep(0.01)
    sys.modules["torch.distributed"].all_reduce = fail

if os.environ.get("SLURM_PROCID") == "1":
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, 250))
    threading.Thread(target=plant, daemon=True).start()
"""


@pytest.fixture
def doctor(cluster, variables, words, tmp_path):
    """doctor(program) -> a command for bash and its variables: doctor.py on two nodes, each of which runs `program`."""

    def command(program: str) -> tuple[str, dict[str, str]]:
        (tmp_path / "sitecustomize.py").write_text(program)
        srun = [
            "srun",
            "--nodes=2",
            "--ntasks-per-node=1",
            "--cpus-per-task=2",
            sys.executable,
            str(ROOT / "doctor.py"),
        ]
        line = shlex.join([*srun, *words, "hardware.nodes=2"])
        return line, variables | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}

    return command


def test_doctor_measures_between_the_nodes(cluster, doctor, tmp_path):
    line, variables = doctor(LATE)
    said = json.loads(cluster.run("bash", "-c", f"{line} json=true", cwd=tmp_path, variables=variables))
    clocks = [finding for finding in said["findings"] if finding["check"] == "clocks"]
    assert [finding["state"] for finding in clocks] == ["warning"] and " s between n0 and n1" in clocks[0]["text"]
    assert round(float(clocks[0]["text"].split()[0])) == 7
    texts = {finding["check"]: finding["text"] for finding in said["findings"]}
    assert said["is_ready"] and "between 2 ranks (gloo)" in texts["all-reduce"], said
    assert "SLURM_JOB_NODELIST=n[0-1]" in texts["slurm"]
    hosts = {finding["check"]: finding["hosts"] for finding in said["findings"]}
    assert hosts["versions"] == ["n0", "n1"] and hosts["runs folder"] == ["n0"]


def test_doctor_shows_what_every_node_has_found_when_they_cannot_communicate(cluster, doctor, tmp_path):
    line, variables = doctor(UNPLUGGED)
    said = cluster.run("bash", "-c", f"{line} 2>&1; echo code $?", cwd=tmp_path, variables=variables)
    assert "n1: error    ranks" in said and "rank 1: network is down" in said and said.endswith("code 1\n"), said
    assert re.search("^error    ranks .* rank 0: Connection closed by peer", said, re.M), said
    assert "n1: error    open files     at most 250 a process" in said and "\nok       open files" in said
    assert "has died" not in said and "Traceback" not in said


@pytest.mark.long
def test_a_chain_of_trainings_and_the_evaluation_of_its_table(cluster, variables, prepared_digits, tmp_path):
    """Each run starts from the weights of the one before; the evaluation finds all, and its table has their errors."""
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "conf" / "errors" / "digits_of_a_test.yaml").write_text(TABLE + CHAIN)
    words = ["table=digits_of_a_test", "hardware=cpu", "tracker=none", "cluster.cpus_per_task=1"]
    words += [f"data.root={prepared_digits}", "hardware.workers=1"]
    command = [sys.executable, str(checkout / "submit.py"), *words]
    said = cluster.run(*command, cwd=tmp_path, variables=variables | {"PYTHONPATH": str(checkout / "src")})
    numbers = re.findall(r"^job +(\d+)", said, re.M)
    for number in numbers:
        Job(cluster, int(number), tmp_path).wait()
    manifests = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/lenet5_digits/*/manifest.json"))]
    assert len(manifests) == 6 and {one["result"]["status"] for one in manifests} == {"complete"}
    hashes = {one["result"]["weights_sha256"] for one in manifests}
    sources = [one["init"]["weights_sha256"] for one in manifests if one.get("init")]
    assert len(sources) == 3 and set(sources) < hashes
    (log,) = tmp_path.glob("runs/tables/digits_of_a_test/slurm-*.log")
    assert "not evaluated" not in log.read_text() and all(name in log.read_text() for name in ("tuned", "last"))

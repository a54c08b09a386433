"""The options of sbatch and the script of a cluster's settings."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tencrop.config import Cluster, Hardware, UserError
from tencrop.submission.batch import SEEDS, TRAIN, Job, check_hardware, cluster_script, command, options, shown


def job(tmp_path: Path, *, hardware: Hardware | None = None, batch_file: str = TRAIN, **values: Any) -> Job:
    return Job("lenet-seed0", batch_file, tmp_path, ("seed=0",), hardware or of("cpu"), **values)


def of(accelerator: Any, devices: int = 1, nodes: int = 1) -> Hardware:
    return Hardware(accelerator, devices, nodes, workers="auto", max_micro_batch=None)


def test_the_resources_are_those_of_the_hardware(tmp_path):
    assert options(job(tmp_path), Cluster()) == [
        "--job-name=lenet-seed0", f"--output={tmp_path}/slurm-%j.log", "--nodes=1", "--ntasks-per-node=1",
    ]  # fmt: skip
    found = options(job(tmp_path, hardware=of("gpu", 8, 2)), Cluster())
    assert found[2:] == ["--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"]


def test_an_array_of_seeds_and_a_dependency(tmp_path):
    seeds = job(tmp_path, batch_file=SEEDS, seeds=(0, 2), after=("7", "8"))
    found = options(seeds, Cluster())
    assert {"--array=0,2", "--dependency=afterany:7:8", f"--output={tmp_path}/slurm-%A_%a.log"} <= set(found)


def test_the_settings_of_a_cluster(tmp_path):
    cluster = Cluster(partition="gpu", account="a b", time="1:00:00", cpus_per_task=4, options=["--mem=64G"])
    found = options(job(tmp_path), cluster)
    assert found[4:] == ["--partition=gpu", "--account=a b", "--time=1:00:00", "--cpus-per-task=4", "--mem=64G"]
    typed = command(job(tmp_path), cluster, Path("/runs/code-1"))
    assert typed[:2] == ["sbatch", "--parsable"] and typed[-2:] == ["/runs/code-1/slurm/train.sbatch", "seed=0"]
    assert '"--account=a b"' in shown(typed)


def test_a_percent_sign_in_a_path_is_no_pattern_of_slurm(tmp_path):
    found = options(job(tmp_path / "50%j"), Cluster())
    assert f"--output={tmp_path}/50%%j/slurm-%j.log" in found


def test_hardware_that_depends_on_the_machine_is_refused():
    check_hardware(of("cpu"))
    with pytest.raises(UserError, match="hardware=auto: a job must state what it needs"):
        check_hardware(of("auto"))


def test_the_script_loads_modules_and_sets_variables_literally(tmp_path):
    cluster = Cluster(modules=["cuda/12", "a b"], environment={"NCCL_DEBUG": "$(date) 'x'"}, network=False)
    script = tmp_path / "cluster.sh"
    script.write_text(cluster_script(cluster))
    shell = 'module() { echo "$@"; }; source "$1"; echo "$NCCL_DEBUG,$WANDB_MODE"'
    done = subprocess.run(["bash", "-uc", shell, "bash", script], capture_output=True, text=True, check=True)
    assert done.stdout == "load cuda/12\nload a b\n$(date) 'x',offline\n"


def test_a_module_that_is_missing_ends_the_job(tmp_path):
    script = tmp_path / "cluster.sh"
    script.write_text(cluster_script(Cluster(modules=["none"])))
    done = subprocess.run(["bash", "-c", 'module() { return 1; }; source "$1"; echo on', "bash", script])
    assert done.returncode == 2

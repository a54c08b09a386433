"""Compares what SLURM has granted, as its variables tell, with the configuration."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from tencrop.config import Hardware, accelerator_of
from tencrop.config.launcher import check_launch, launched
from tencrop.doctor.finding import Finding, attempt, error, ok, warning


def judge_launch(hardware: Hardware) -> list[Finding]:
    """Whether the processes that were started are those that the configuration asks for, as in train.py."""
    return attempt("processes", lambda: [ok("processes", _started(hardware))])


def _started(hardware: Hardware) -> str:
    check_launch(hardware)
    found = launched()
    return f"{hardware.devices}, without a launcher" if found is None else f"{found.num_processes} of {found.launcher}"


def judge_slurm(variables: Mapping[str, str], hardware: Hardware, *, num_cores: int) -> list[Finding]:
    """num_cores: of this process's affinity mask and quota."""
    if "SLURM_JOB_ID" not in variables:
        return [ok("slurm", "not in a job")]
    # A job has dozens of variables. These say what a training gets, and fit on a line.
    names = ("JOB_ID", "JOB_PARTITION", "JOB_NODELIST", "NTASKS", "CPUS_PER_TASK", "GPUS_ON_NODE", "MEM_PER_NODE")
    given = [f"SLURM_{name}={variables[f'SLURM_{name}']}" for name in names if variables.get(f"SLURM_{name}")]
    return [
        ok("slurm", " ".join(given)),
        *_nodes(variables, hardware),
        *_gpus(variables, hardware),
        *_cores(variables, num_cores),
    ]


def _nodes(variables: Mapping[str, str], hardware: Hardware) -> list[Finding]:
    granted = _number(variables, "SLURM_JOB_NUM_NODES")
    # A variable that is not set is no finding: check_launch has counted the processes in any case.
    if granted in (None, hardware.nodes):
        return []
    text = f"hardware.nodes={hardware.nodes}, but the job has {granted}"
    return [error("slurm", text, f"sbatch --nodes={hardware.nodes}, or hardware.nodes={granted}")]


def _gpus(variables: Mapping[str, str], hardware: Hardware) -> list[Finding]:
    granted = _number(variables, "SLURM_GPUS_ON_NODE")
    if accelerator_of(hardware) == "cpu":
        return (
            []
            if not granted
            else [
                warning(
                    "slurm", f"{granted} GPUs are granted and not used", "leave out --gpus-per-node, or hardware=cpu"
                )
            ]
        )
    if granted in (None, hardware.devices):
        return []
    text = f"hardware.devices={hardware.devices}, but {granted} GPUs of the node are granted"
    remedy = f"sbatch --gpus-per-node={hardware.devices}, or hardware.devices={granted}"
    # Fewer GPUs than asked for stop a training; more of them only stay idle.
    return [(error if (granted or 0) < hardware.devices else warning)("slurm", text, remedy)]


def _cores(variables: Mapping[str, str], num_cores: int) -> list[Finding]:
    asked = _number(variables, "SLURM_CPUS_PER_TASK")
    if asked is None:
        return [warning("slurm", "SLURM_CPUS_PER_TASK is not set: SLURM grants one core a task", "--cpus-per-task=8")]
    if num_cores < asked:
        text = f"SLURM_CPUS_PER_TASK={asked}, but this process may use {num_cores}"
        # Since SLURM 22.05 srun does not take the number from sbatch.
        return [error("slurm", text, f"srun --cpus-per-task={asked}")]
    if asked == 1:
        return [warning("slurm", "one core a task: a single thread decodes the images", "--cpus-per-task=8")]
    return []


def _number(variables: Mapping[str, str], name: str) -> int | None:
    value = variables.get(name, "")
    # SLURM writes some counts as lists, such as 8(x2). int() would raise, and a list says nothing about this node.
    return int(value) if value.isascii() and value.isdecimal() else None


def node_name() -> str:
    """The name of this node: SLURM's own in a job, else the host's."""
    # The name that scontrol, sinfo and --exclude take; the host's own may have a domain, or be a container's.
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def slurm_variables() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}

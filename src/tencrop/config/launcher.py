"""Detects srun and torchrun from environment variables, before torch is imported: rank, world size, ranks per node.

These variables outlive their launcher: in a shell opened by salloc or srun, in a notebook, in a container image. A
launcher is recognized only if its set of variables is complete. An incomplete set that implies other processes is
refused: this process would wait for ranks that nobody started, or believe it is not rank 0 and print nothing.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from tencrop.config.schema import Hardware, UserError

# Set for a rank that train.py started itself (distributed/launch.py): "PIPE_DESCRIPTOR PID_OF_RANK_0".
PIPE = "TENCROP_PIPE"
# Lightning reads these to find its rank, whichever launcher set them.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
RANK_OF = {"torchrun": "RANK", "srun": "SLURM_PROCID"}
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")
AGENT = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")  # set by torchrun only
# SLURM_MAX_NORMAL_STEP_ID of slurm.h. Larger ids denote batch scripts and salloc's interactive step.
MAX_STEP_ID = 0xFFFFFFF0
# Tasks on each node of the step, such as "8(x2)". SLURM_NTASKS_PER_NODE is what the job asked for, if it did.
STEP_TASKS = "SLURM_STEP_TASKS_PER_NODE"
PTY = "SLURM_PTY_PORT"  # set by srun --pty
INTERACTIVE = ("bash", "interactive")  # names that srun --pty bash and salloc give their jobs


class Launched(NamedTuple):
    """The set of processes that a launcher started."""

    launcher: str  # srun | torchrun
    num_processes: int
    num_per_node: int  # 0 if the nodes have different numbers


def is_first_process() -> bool:
    """Whether this is rank 0, according to the launcher's own variable, as in Lightning.

    Variables of other launchers may be set too and disagree: torchrun orders machines by name and srun by the node
    list, so under `srun torchrun` rank 0 may have any SLURM_PROCID.
    """
    found = launched()
    names = RANKS if found is None else (RANK_OF[found.launcher],)
    return all(os.environ.get(name, "0") == "0" for name in names)


def launched() -> Launched | None:
    """The processes that srun or torchrun started; None without a launcher, as in a batch script without srun.

    Any launcher that sets all of torchrun's variables counts as torchrun, except inside a step of srun: batch scripts
    commonly export MASTER_ADDR, RANK and so on for other programs.
    """
    if _is_torchrun() and ("TORCHELASTIC_RUN_ID" in os.environ or not _is_srun()):
        num_processes = int(os.environ["WORLD_SIZE"])
        return Launched("torchrun", num_processes, _number("LOCAL_WORLD_SIZE") or num_processes)
    if _is_srun():
        return Launched("srun", int(os.environ["SLURM_NTASKS"]), _tasks_per_node())
    return None


def check_one_process() -> None:
    """Raise UserError if a launcher started several processes for plan=true, which measures in one."""
    found = launched()
    if found is not None and found.num_processes > 1:
        raise UserError(
            f"plan=true: one process measures one device, but {found.launcher} started {found.num_processes}; type it"
            " without the launcher, with the same hardware"
        )


def check_launch(hardware: Hardware) -> None:
    """Raise UserError if the processes started do not match `hardware`, or a launcher's variables are incomplete.

    Removes the rank variables of other launchers from the environment, since torch and Lightning would read them first.
    """
    if PIPE in os.environ:
        _refuse_stray_pipe()
        return  # rank 0 has checked this before it started us
    num_devices, found = hardware.devices * hardware.nodes, launched()
    if found is None:
        _refuse_left_over()
        if hardware.nodes > 1:
            raise UserError(
                f"hardware.nodes={hardware.nodes}: start it under srun or torchrun, {hardware.devices} processes on"
                " each node"
            )
    elif found.num_processes != num_devices:
        raise UserError(
            f"hardware.devices x hardware.nodes = {num_devices}: {found.num_processes} processes were started by"
            f" {found.launcher}; start as many, or choose the hardware that fits{_or_unset(found)}"
        )
    elif not found.num_per_node:
        raise UserError(
            f"hardware.devices={hardware.devices}: srun started {os.environ[STEP_TASKS]} tasks on the nodes; start as"
            f" many on each, --nodes={hardware.nodes} --ntasks-per-node={hardware.devices}"
        )
    elif found.num_per_node != hardware.devices:
        raise UserError(
            f"hardware.devices={hardware.devices}: {found.launcher} started {found.num_per_node} processes on each"
            " node; start as many, or choose the hardware that fits"
        )
    elif int(os.environ[rank := RANK_OF[found.launcher]]) >= num_devices:
        raise UserError(
            f"{rank}={os.environ[rank]}: {num_devices} processes have ranks 0 to {num_devices - 1}; start them with"
            f" {found.launcher}{_or_unset(found)}"
        )
    if found is not None and found.launcher == "srun":
        # Lightning compares these with its own settings. They are those of the job, and not of the step: a step of one
        # task in an allocation of eight has SLURM_NTASKS_PER_NODE=8, and without --ntasks-per-node it is missing.
        os.environ |= {"SLURM_NTASKS_PER_NODE": str(hardware.devices), "SLURM_NNODES": str(hardware.nodes)}
    if found is None or found.launcher == "srun":
        for name in (*RANKS, *SIZES, *AGENT):
            if not name.startswith("SLURM_"):
                os.environ.pop(name, None)


def unset(launcher: str) -> str:
    """The shell command that removes the variables which a launcher left behind."""
    names = (*AGENT, *RANKS, *SIZES) if launcher == "torchrun" else ("SLURM_STEP_ID", "SLURM_PROCID")
    there = [name for name in names if name in os.environ and name.startswith("SLURM_") == (launcher == "srun")]
    return f"unset {' '.join(there)}"


def _refuse_stray_pipe() -> None:
    """Raise UserError if PIPE was not set by the process that started this one, but exported by a shell, say."""
    parts = re.fullmatch("([0-9]{1,9}) ([0-9]{1,9})", os.environ[PIPE])
    is_ours = parts is not None and int(parts[2]) == os.getppid() and _is_pipe(int(parts[1]))
    if not is_ours or _missing(("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        raise UserError(
            f"{PIPE}={os.environ[PIPE]}: train.py sets it for the processes that it starts, and no train.py started"
            f" this one; unset {PIPE}"
        )


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:  # not open
        return False


def _or_unset(found: Launched) -> str:
    return f", or, if {found.launcher} did not start this one, {unset(found.launcher)}"


def _is_torchrun() -> bool:
    return not _missing(TORCHRUN)


def _is_srun() -> bool:
    return _is_step() and not _missing(SRUN)


def _is_step() -> bool:
    """Whether this process belongs to an srun step that runs a program, and not a shell.

    A shell opened by srun or salloc also has SLURM_PROCID=0 and SLURM_NTASKS=n, but nobody starts the other n - 1.
    """
    step = _number("SLURM_STEP_ID")
    return step is not None and step < MAX_STEP_ID and not _is_shell()


def _is_shell() -> bool:
    """Whether srun opened a shell: --pty in a job named after one, or a single task, where it makes no difference.

    The name alone does not tell: salloc names its jobs "interactive", and srun typed in them starts programs.
    """
    is_alone, is_named = _number("SLURM_NTASKS") == 1, os.environ.get("SLURM_JOB_NAME") in INTERACTIVE
    return is_alone + is_named + (PTY in os.environ) >= 2


def _tasks_per_node() -> int:
    """The number of tasks of this step on each node; 0 if the nodes have different numbers, as in "2(x3),1"."""
    counts = os.environ.get(STEP_TASKS, "")
    if same := re.fullmatch(r"([0-9]{1,9})(\(x[0-9]+\))?", counts):
        return int(same[1])
    # Without it, as in schedulers that imitate srun, the job's own number; without that, one node.
    return 0 if counts else _number("SLURM_NTASKS_PER_NODE") or int(os.environ["SLURM_NTASKS"])


def _missing(names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are unset or not a number (for MASTER_ADDR: unset or empty)."""
    return [name for name in names if (not os.environ.get(name) if name == "MASTER_ADDR" else _number(name) is None)]


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else None


def _refuse_left_over() -> None:
    """Raise UserError if left-over variables contradict a single process; rank 0 of world size 1 does not."""
    if _is_step():
        raise _left_over("SLURM_STEP_ID", "srun", SRUN)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise _left_over("TORCHELASTIC_RUN_ID", "torchrun", TORCHRUN)
    for name in (*RANKS, *SIZES):
        alone = "0" if name in RANKS else "1"
        if os.environ.get(name, alone) != alone:
            is_srun = name.startswith("SLURM_")
            raise (
                _left_over(name, "srun", ("SLURM_STEP_ID", *SRUN))
                if is_srun
                else _left_over(name, "torchrun", TORCHRUN)
            )


def _left_over(name: str, launcher: str, names: tuple[str, ...]) -> UserError:
    """The error for a variable `name` that implies other processes while `names` of its launcher are incomplete."""
    problem = f"{name}={os.environ[name]}: implies that {launcher} started this process as one of several"
    if missing := _missing(names):
        reason = f"without {', '.join(missing)}, which {launcher} sets too"
    elif launcher == "srun" and not _is_step():
        job = os.environ.get("SLURM_JOB_NAME")
        reason = f"but a job named {job} is taken for a shell" if _is_shell() else "but this is not a step of srun"
    else:
        reason = "but rank and world size contradict each other"
    return UserError(f"{problem}, {reason}; {unset(launcher)}, or start it with {launcher}")

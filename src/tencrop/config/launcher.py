"""Which process this is, of how many, and who started them; judged from variables, before torch is imported.

Such variables outlive their launcher: in a shell that salloc or srun opened, in a notebook, in a container's image. A
launcher is believed only where its set is complete; half a set that speaks of other processes is refused, since this
one would wait for them, or keep quiet as one that is not the first.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from tencrop.config.schema import Hardware, UserError

PIPE = (
    "TENCROP_PIPE"  # of a rank that train.py started (distributed/launch.py): the pipe's descriptor, the main process
)
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # Lightning reads them
RANK_OF = {"torchrun": "RANK", "srun": "SLURM_PROCID"}
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")
AGENT = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")  # torchrun's own, which other launchers do not set
MAX_STEP_ID = 0xFFFFFFF0  # SLURM_MAX_NORMAL_STEP_ID of slurm.h: above are batch scripts and salloc's interactive step
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that are a shell; Lightning goes by them too


class Launched(NamedTuple):
    """The processes that a launcher started."""

    launcher: str  # srun | torchrun
    num_processes: int
    num_per_node: int


def is_first_process() -> bool:
    """Whether this is rank 0, judged by the launcher's own variable, as Lightning does.

    The others' may stand beside it with other numbers: torchrun orders machines by name, srun by the node list, so that
    under `srun torchrun` rank 0 may have any SLURM_PROCID.
    """
    found = launched()
    names = RANKS if found is None else (RANK_OF[found.launcher],)
    return all(os.environ.get(name, "0") == "0" for name in names)


def launched() -> Launched | None:
    """What srun or torchrun started, None where neither did (in a batch script without srun, say).

    Any launcher that sets all of torchrun's variables passes for torchrun, but not within a step of srun's: there,
    batch scripts export them for other programs.
    """
    if _is_torchrun() and ("TORCHELASTIC_RUN_ID" in os.environ or not _is_srun()):
        num_processes = int(os.environ["WORLD_SIZE"])
        return Launched("torchrun", num_processes, _number("LOCAL_WORLD_SIZE") or num_processes)
    if _is_srun():
        num_processes = int(os.environ["SLURM_NTASKS"])
        return Launched("srun", num_processes, _number("SLURM_NTASKS_PER_NODE") or int(num_processes == 1))
    return None


def check_launch(hardware: Hardware) -> None:
    """Raises UserError where the processes that were started are not those that the hardware says, or where only a
    part of a launcher's variables is there.

    Other launchers' ranks are taken out of the environment, where torch and Lightning would read them first.
    """
    if PIPE in os.environ:
        return  # the main process has been here
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
    elif not found.num_per_node:  # Lightning wants it said
        raise UserError(f"srun: started without --ntasks-per-node; give it, --ntasks-per-node={hardware.devices}")
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
    if found is None or found.launcher == "srun":
        for name in (*RANKS, *SIZES, *AGENT):
            if not name.startswith("SLURM_"):
                os.environ.pop(name, None)


def unset(launcher: str) -> str:
    """The command that takes a launcher's variables out of a shell in which it left them."""
    names = (*AGENT, *RANKS, *SIZES) if launcher == "torchrun" else ("SLURM_STEP_ID", "SLURM_PROCID")
    there = [name for name in names if name in os.environ and name.startswith("SLURM_") == (launcher == "srun")]
    return f"unset {' '.join(there)}"


def _or_unset(found: Launched) -> str:
    return f", or, where {found.launcher} did not start this one, {unset(found.launcher)}"


def _is_torchrun() -> bool:
    return not _missing(TORCHRUN)


def _is_srun() -> bool:
    return _is_step() and not _missing(SRUN)


def _is_step() -> bool:
    """Whether this is in a step of srun's that runs a program, and not in a shell: that one says PROCID 0 of NTASKS
    too, but nobody starts the others."""
    step = _number("SLURM_STEP_ID")
    return step is not None and step < MAX_STEP_ID and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE


def _missing(names: tuple[str, ...]) -> list[str]:
    """Those that are not set, or hold no number (MASTER_ADDR: nothing)."""
    return [name for name in names if (not os.environ.get(name) if name == "MASTER_ADDR" else _number(name) is None)]


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else None


def _refuse_left_over() -> None:
    """Of a process that no launcher started: rank 0 of 1 is what it is anyway, anything else contradicts it."""
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
    """That `name` speaks of other processes, and not all `names` of its launcher are there."""
    said = f"{name}={os.environ[name]}: says that {launcher} started this process as one of several"
    if missing := _missing(names):
        reason = f"without {', '.join(missing)}, which {launcher} sets too"
    elif launcher == "srun" and not _is_step():
        job = os.environ.get("SLURM_JOB_NAME")
        reason = (
            f"but a job named {job} is taken for a shell" if job in INTERACTIVE else "but this is no step of srun's"
        )
    else:
        reason = "but its rank and their number do not fit together"
    return UserError(f"{said}, {reason}; {unset(launcher)}, or start it with {launcher}")

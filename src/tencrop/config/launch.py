"""Which process this is, of how many, and who started them; judged from variables, before torch is imported."""

from __future__ import annotations

import os
from typing import NamedTuple

from tencrop.config.schema import Hardware, UserError

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
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
    names = RANKS if found is None else ("RANK",) if found.launcher == "torchrun" else ("SLURM_PROCID",)
    return all(os.environ.get(name, "0") == "0" for name in names)


def launched() -> Launched | None:
    """What srun or torchrun started, None where neither did (in a batch script without srun, say)."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        num_processes = int(os.environ["WORLD_SIZE"])
        return Launched("torchrun", num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    is_step = "SLURM_STEP_ID" in os.environ and "SLURM_NTASKS" in os.environ
    if is_step and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE:
        num_processes = int(os.environ["SLURM_NTASKS"])
        per_node = os.environ.get("SLURM_NTASKS_PER_NODE", 1 if num_processes == 1 else 0)
        return Launched("srun", num_processes, int(per_node))
    return None


def check_launch(hardware: Hardware) -> None:
    """Raises UserError where the processes that were started are not those that the hardware says."""
    num_devices, found = hardware.devices * hardware.nodes, launched()
    if found is None:
        if hardware.nodes > 1:
            raise UserError(
                f"hardware.nodes={hardware.nodes}: start it under srun or torchrun, {hardware.devices} processes on"
                " each node"
            )
    elif found.num_processes != num_devices:
        raise UserError(
            f"hardware.devices x hardware.nodes = {num_devices}: {found.num_processes} processes were started by"
            f" {found.launcher}; start as many, or choose the hardware that fits"
        )
    elif not found.num_per_node:  # Lightning wants it said
        raise UserError(f"srun: started without --ntasks-per-node; give it, --ntasks-per-node={hardware.devices}")
    elif found.num_per_node != hardware.devices:
        raise UserError(
            f"hardware.devices={hardware.devices}: {found.launcher} started {found.num_per_node} processes on each"
            " node; start as many, or choose the hardware that fits"
        )

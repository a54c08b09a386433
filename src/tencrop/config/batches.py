"""How the recipe's global batch is laid out on the hardware, decided before torch is imported."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from tencrop.config.cores import num_granted_cores
from tencrop.config.launcher import launched
from tencrop.config.schema import Config, Hardware, UserError


@dataclass(frozen=True)
class Batches:
    """How a global batch is laid out on the devices."""

    num_devices: int
    per_device: int  # samples of a global batch that a device takes
    micro_batch: int  # samples in one forward pass
    accumulate_grad_batches: int  # forward passes an optimizer step
    bn: str  # none | ghost (groups within a micro-batch) | sync (a group spans devices)
    bn_groups: int  # groups within a micro-batch; 1 where bn is none or sync


def derive_batches(config: Config) -> Batches:
    """The layout of the recipe's global batch on the hardware, or UserError with the arithmetic.

    Groups of `model.bn_group` (and of `mix_group`) samples are consecutive slices of the global batch; no layout may
    change them.
    """
    check_precision(config)
    hardware, batch, group = config.hardware, config.training.global_batch, config.model.bn_group
    num_devices = hardware.devices * hardware.nodes
    if batch % num_devices:
        lower, upper = batch - batch % num_devices, batch - batch % num_devices + num_devices
        raise UserError(
            f"training.global_batch={batch}: {num_devices} devices ({hardware.nodes} nodes of {hardware.devices})"
            f" cannot share it evenly ({batch} / {num_devices} = {batch / num_devices:.2f});"
            f" choose hardware.devices among {_divisors(batch)} or a batch of {lower or upper} or {upper}"
        )
    per_device = batch // num_devices
    limit = hardware.max_micro_batch or per_device
    mix_group = config.augmentation.mixing.mix_group or 1
    if per_device % mix_group:
        raise UserError(
            f"augmentation.mixing.mix_group={mix_group}: {batch} / {num_devices} devices = {per_device} samples"
            f" a device are no whole number of groups; use fewer devices or a mix_group that divides {per_device}"
        )
    unit = math.lcm(mix_group, group if group is not None and per_device % group == 0 else 1)
    micro_batch = max((size for size in _divisors(per_device) if size <= limit and size % unit == 0), default=0)
    if not micro_batch:
        groups = (
            f"model.bn_group={group} samples is normalized together"
            if unit == group
            else (
                f"{unit} samples belongs together (augmentation.mixing.mix_group={mix_group}, model.bn_group={group})"
            )
        )
        raise UserError(
            f"hardware.max_micro_batch={limit}: a group of {groups} and does not fit; raise it to at least {unit}"
        )
    if group is None:
        return Batches(num_devices, per_device, micro_batch, per_device // micro_batch, "none", 1)
    if micro_batch % group == 0:
        return Batches(num_devices, per_device, micro_batch, per_device // micro_batch, "ghost", micro_batch // group)
    arithmetic = f"{batch} / {num_devices} devices = {per_device} samples a device, groups of model.bn_group={group}"
    if micro_batch != per_device:
        raise UserError(
            f"hardware.max_micro_batch={limit}: {arithmetic}; accumulation cannot enlarge a group: raise"
            f" hardware.max_micro_batch to {per_device}, or use a bn_group that divides it"
        )
    if group % per_device or group != batch:
        raise UserError(
            f"model.bn_group={group}: {arithmetic}; use fewer devices, or a bn_group that divides {per_device}"
        )
    if accelerator_of(hardware) == "cpu":
        raise UserError(
            f"model.bn_group={group}: {arithmetic}; a group over several devices needs synchronized BatchNorm,"
            " which is for GPUs only; use fewer processes"
        )
    return Batches(num_devices, per_device, micro_batch, 1, "sync", 1)


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def accelerator_of(hardware: Hardware) -> str:
    """cpu or gpu; looks for a device file, so that torch need not be imported."""
    if hardware.accelerator != "auto":
        return hardware.accelerator
    return "gpu" if Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu"


def check_precision(config: Config) -> None:
    """Raises UserError where the hardware does not have the precision: a result must not name one that it lacks."""
    if config.training.precision == "tf32" and accelerator_of(config.hardware) == "cpu":
        raise UserError(
            "training.precision=tf32: a CPU has no TF32 and computes in float32; set training.precision=fp32,"
            " or choose a GPU (hardware=gpu1)"
        )


def is_deterministic(config: Config) -> bool:
    """Whether the run is to be the same bit for bit when it is done again: as asked, or because it runs on CPUs."""
    return config.deterministic if config.deterministic is not None else accelerator_of(config.hardware) == "cpu"


def num_workers(hardware: Hardware) -> int:
    """Loader threads of one process."""
    return num_threads(hardware.workers, hardware.devices)


def num_threads(workers: int | str, num_processes: int = 1) -> int:
    """`workers` threads of one process; auto: its share of the cores that SLURM or the system granted
    (cores.py: no more than a container's quota).

    SLURM grants its cores to a task. A process that srun launched is one; those that torchrun or this program started
    inside a task share its cores, as the `num_processes` of a node share the system's.
    """
    if isinstance(workers, int):
        return workers
    granted, found = os.environ.get("SLURM_CPUS_PER_TASK"), launched()
    if granted and not granted.isdecimal():
        raise UserError(f"SLURM_CPUS_PER_TASK={granted}: is no number of cores; unset it, or set workers to a number")
    if granted and found is not None and found.launcher == "srun":
        return int(granted)
    return max(1, int(granted or num_granted_cores()) // num_processes)

"""Splits the recipe's global batch into devices, micro-batches and BatchNorm groups, before torch is imported.

The recipe fixes the global batch and the BatchNorm group; the hardware may only change how they are distributed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tencrop.config.cores import num_granted_cores
from tencrop.config.launcher import launched
from tencrop.config.schema import Config, Hardware, UserError


@dataclass(frozen=True)
class Batches:
    """Layout of one global batch: global batch = num_devices x accumulate_grad_batches x micro_batch."""

    num_devices: int
    per_device: int  # samples of each global batch on one device
    micro_batch: int  # samples in one forward pass
    accumulate_grad_batches: int  # forward passes per optimizer step
    bn: Literal["none", "ghost", "sync"]  # ghost: groups within a micro-batch; sync: a group spans devices
    bn_groups: int  # groups within a micro-batch; 1 if bn is none or sync


def derive_batches(config: Config) -> Batches:
    """Derive the layout of the global batch; raise UserError with the arithmetic if the hardware does not allow it.

    Groups of `model.bn_group` (and of `mix_group`) samples are consecutive slices of the global batch. Every layout
    keeps these slices, so that BatchNorm statistics and mixed pairs do not depend on the number of devices.
    """
    check_precision(config)
    check_compilation(config)
    hardware, batch, group = config.hardware, config.training.global_batch, config.model.bn_group
    num_devices = hardware.devices * hardware.nodes
    if batch % num_devices:
        # Never rounded silently: another batch size needs another learning rate.
        lower, upper = batch - batch % num_devices, batch - batch % num_devices + num_devices
        raise UserError(
            f"training.global_batch={batch}: {num_devices} devices ({hardware.nodes} nodes of {hardware.devices})"
            f" cannot share it evenly ({batch} / {num_devices} = {batch / num_devices:.2f});"
            f" choose {_fitting_devices(batch, hardware.nodes)} or a batch of {lower or upper} or {upper}"
        )
    per_device = batch // num_devices
    limit = hardware.max_micro_batch or per_device
    mix_group = config.augmentation.mixing.mix_group or 1
    if per_device % mix_group:
        raise UserError(
            f"augmentation.mixing.mix_group={mix_group}: {batch} / {num_devices} devices = {per_device} samples"
            f" per device are not a whole number of groups; use fewer devices or a mix_group that divides {per_device}"
        )
    # A micro-batch holds whole groups: accumulation adds up gradients, but BatchNorm sees one forward pass at a time.
    # A bn_group that does not divide per_device spans devices (sync) and is handled below.
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
    check_cuda_graphs(config, per_device // micro_batch)
    if group is None:
        return Batches(num_devices, per_device, micro_batch, per_device // micro_batch, "none", 1)
    if micro_batch % group == 0:
        return Batches(num_devices, per_device, micro_batch, per_device // micro_batch, "ghost", micro_batch // group)
    # Here no micro-batch consists of whole groups, which leaves synchronized BatchNorm with one group over all devices.
    arithmetic = f"{batch} / {num_devices} devices = {per_device} samples per device, groups of model.bn_group={group}"
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


def _fitting_devices(batch: int, num_nodes: int) -> str:
    """What to type to share the batch evenly. hardware.devices is the number on each node."""
    if batch % num_nodes:
        return "a number of hardware.nodes that divides it,"
    return f"hardware.devices among {_divisors(batch // num_nodes)}"


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def accelerator_of(hardware: Hardware) -> Literal["cpu", "gpu"]:
    """The accelerator in use: "cpu" or "gpu". Looks for a device file, so that torch need not be imported."""
    if hardware.accelerator != "auto":
        return hardware.accelerator
    return "gpu" if Path("/dev/nvidiactl").exists() and not hides_all_gpus() else "cpu"


def hides_all_gpus() -> bool:
    """Whether CUDA_VISIBLE_DEVICES is set to no GPU. CUDA ignores what comes after the first entry that is none."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    return first in ("", "-1", "NoDevFiles")  # SLURM sets the last one in a job without GPUs


def check_precision(config: Config) -> None:
    """Raise UserError if the hardware does not support the precision.

    torch ignores TF32 on a CPU without a word, and the result would then state a precision that was not used.
    """
    if config.training.precision == "tf32" and accelerator_of(config.hardware) == "cpu":
        raise UserError(
            "training.precision=tf32: a CPU has no TF32 and computes in float32; set training.precision=fp32,"
            " or choose a GPU (hardware=gpu1)"
        )


def check_compilation(config: Config) -> None:
    """Raise UserError if the run is to be deterministic, but compiled: its rounding depends on torch's compiler."""
    if config.training.compile != "none" and is_deterministic(config):
        setting = "true" if config.deterministic else "null, which is true on a CPU"
        raise UserError(
            f"training.compile={config.training.compile}: deterministic is {setting}, and compiled code may round"
            " differently in each environment; set deterministic=false or training.compile=none"
        )


def check_cuda_graphs(config: Config, accumulate_grad_batches: int) -> None:
    """Raise UserError for CUDA graphs and several micro-batches: the graph would write over the sum of gradients."""
    if config.training.compile in ("reduce-overhead", "max-autotune") and accumulate_grad_batches > 1:
        raise UserError(
            f"training.compile={config.training.compile}: its CUDA graphs need whole batches, and this layout has"
            f" {accumulate_grad_batches} micro-batches; set training.compile=default, use more devices, or raise"
            " hardware.max_micro_batch"
        )


def is_deterministic(config: Config) -> bool:
    """Whether repeating the run must give the same bits: `deterministic` if it is set, otherwise true on a CPU only."""
    return config.deterministic if config.deterministic is not None else accelerator_of(config.hardware) == "cpu"


def num_workers(hardware: Hardware) -> int:
    """Number of loader threads in one process."""
    return num_threads(hardware.workers, hardware.devices)


def num_threads(workers: int | str, num_processes: int = 1) -> int:
    """Number of threads in one process: `workers`, or with "auto" its share of the cores granted by SLURM or the system
    (cores.py also applies a container's quota).

    SLURM grants cores per task. A process launched by srun is a task and may use all of them. Processes started by
    torchrun or by this program run inside one task and share its cores, `num_processes` on each node.
    """
    if isinstance(workers, int):
        return workers
    # Before the affinity mask, which on clusters without task binding shows all cores of the node.
    granted, found = os.environ.get("SLURM_CPUS_PER_TASK"), launched()
    if granted and not granted.isdecimal():
        raise UserError(f"SLURM_CPUS_PER_TASK={granted}: not a number of cores; unset it, or set workers to a number")
    if granted and found is not None and found.launcher == "srun":
        return int(granted)
    return max(1, int(granted or num_granted_cores()) // num_processes)

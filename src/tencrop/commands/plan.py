"""train.py plan=true: measures a recipe for about a minute and prints what the whole training would take.

The time per step is kept for report.py table=NAME plan=true, which adds up the hours of a table.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tencrop.config import Batches, Config, UserError, accelerator_of, derive_batches, num_workers
from tencrop.config.cores import num_granted_cores
from tencrop.config.writable import check_writable
from tencrop.progress import duration, format_bytes
from tencrop.records.probes import SavedProbe, probe_file, recipe_hash, save_probe
from tencrop.records.provenance import cpu_name
from tencrop.text_tables import aligned
from tencrop.training.probe import Probe, Timing, probe

MANY_DEVICES = (1, 2, 4, 8)  # the rows of the table, besides the chosen number
COMPETING = 1.2  # together this much slower than the slower one alone: loader and step share something


def plan(config: Config, batches: Batches, manifest: dict[str, Any]) -> int:
    """Measure and print. Only the time per step is kept, in runs/plans: no run folder, no tracker."""
    path = probe_file(Path(config.runs), recipe_hash(config), _device_kind(config), batches.num_devices)
    # Before the measurement: a full disk should not cost the user that minute.
    check_writable(path, remedy="make room, or name another folder with runs=DIR")
    print("plan: measuring for about a minute", flush=True)
    measured = probe(config, batches=batches, manifest=manifest)
    saved = SavedProbe(
        recipe_hash(config),
        _device_kind(config),
        batches.num_devices,
        seconds_per_step=measured.both.seconds,
        num_steps=measured.total_steps,
    )
    blocks = (
        _measurements(config, batches, measured),
        _conclusions(config, batches, measured, manifest),
        _devices_table(config, batches, measured),
        _assumptions(config, batches, measured),
    )
    print("\n\n".join("\n".join(lines) for lines in blocks))
    print(f"\n{save_probe(Path(config.runs), saved)}: kept for report.py table=NAME plan=true")
    return 0


def _measurements(config: Config, batches: Batches, measured: Probe) -> list[str]:
    def row(name: str, timing: Timing) -> tuple[str, str, str, str]:
        # per_device and not micro_batch: a timing is of an optimizer step, with all its micro-batches.
        per_s = batches.per_device / timing.seconds
        return name, _count(per_s), f"{timing.seconds * 1000:,.1f}", str(timing.num_steps)

    num_parts = batches.accumulate_grad_batches
    parts = f"{num_parts} micro-batch{'es' if num_parts > 1 else ''} of {batches.micro_batch}"
    rows = [
        ("one device", "images/s", "ms/step", "steps timed"),
        row("loader alone", measured.loader),
        row("step alone", measured.step),
        row("both together", measured.both),
    ]
    head = (
        f"{config.model.name} on {_device_name(config)}: {batches.per_device} images a step and device ({parts}),"
        f" {_counted(num_workers(config.hardware), 'loader thread')}"
    )
    return [head, *aligned(rows, left=[0])]


def _conclusions(config: Config, batches: Batches, measured: Probe, manifest: dict[str, Any]) -> list[str]:
    # `both` and not the slower of the two alone, because loader and step may compete for the cores.
    epoch_s, total_s = (steps * measured.both.seconds for steps in (measured.steps_per_epoch, measured.total_steps))
    # Not training.epochs, which is null for a budget in steps and ignores max_steps.
    num_epochs = measured.total_steps / measured.steps_per_epoch
    stop = "" if config.training.max_steps is None else f", cut by training.max_steps={config.training.max_steps}"
    sizes = {name: split["beton_bytes"] for name, split in manifest["splits"].items()}
    train = manifest["splits"]["train"]
    # The loader asks for whole images, whatever part of them a crop takes (loader.read_ahead).
    read_per_s = sizes["train"] / train["num_samples"] * batches.per_device / measured.both.seconds
    num_devices = batches.num_devices
    # The CUDA context, about 0.5 GB, is not in torch's count.
    what = "reserved by torch on the GPU" if accelerator_of(config.hardware) == "gpu" else "of the process"
    return [
        f"time       {_time(epoch_s)} an epoch of {measured.steps_per_epoch:,} steps;"
        f" {_time(total_s)} for all {measured.total_steps:,} steps ({num_epochs:.3g} epochs{stop});"
        f" {num_devices * total_s / 3600:.3g} device-hours on {_counted(num_devices, 'device')}",
        f"bound by   {_bound(measured)}",
        f"memory     {format_bytes(measured.peak_memory_bytes)} at the peak, {what}",
        f"store      {config.data.root}: {', '.join(f'{name} {format_bytes(sizes[name])}' for name in sizes)};"
        f" a device reads {format_bytes(read_per_s)}/s of it",
    ]


def _bound(measured: Probe) -> str:
    loader, step, both = measured.loader.seconds, measured.step.seconds, measured.both.seconds
    # Ratios of the two alone: while they run together, each also waits for the other.
    slower, faster = ("the loader", "the step") if loader > step else ("the step", "the loader")
    sentence = f"{slower}: {faster} alone is {max(loader, step) / min(loader, step):.1f} times as fast"
    if both > COMPETING * max(loader, step):
        sentence += f"; together they are {both / max(loader, step):.1f} times as slow, so they compete for cores"
    return sentence


def _devices_table(config: Config, batches: Batches, measured: Probe) -> list[str]:
    """What the loaders of N devices must deliver for no device to wait, and how long the recipe then takes."""
    batch = config.training.global_batch
    # Also the numbers that the recipe refuses, so that the table says which ones and why nothing is printed for them.
    numbers = sorted({*MANY_DEVICES, batches.num_devices})
    allowed = [number for number in numbers if _can_share(config, number)]
    refused = [str(number) for number in numbers if number not in allowed]
    # From step and loader alone: a device that never waits is as fast as the step, and `loader cores` keep it so.
    step_per_s = batches.per_device / measured.step.seconds
    thread_per_s = batches.per_device / measured.loader.seconds / _num_cores(config)
    rows = [("devices", "images/s", "loader cores", "time", "device-hours")]
    for number in allowed:
        seconds = measured.total_steps * batch / (number * step_per_s)
        cores = number * step_per_s / thread_per_s
        rows.append(
            (
                str(number),
                _count(number * step_per_s),
                f"{cores:.1f}" if cores >= 1 else f"{cores:.2g}",
                _time(seconds),
                f"{number * seconds / 3600:.3g}",
            )
        )
    lines = ["with N such devices that never wait for the loader:", *aligned(rows)]
    if refused:
        lines.append(f"a global batch of {batch} cannot be shared by {', '.join(refused)} devices in this recipe")
    return lines


def _can_share(config: Config, num_devices: int) -> bool:
    # derive_batches is the only judge: divisibility of the global batch, of BatchNorm groups and of mixing groups.
    # One node, since the number of nodes does not change how a batch is shared.
    hardware = dataclasses.replace(config.hardware, devices=num_devices, nodes=1)
    try:
        derive_batches(dataclasses.replace(config, hardware=hardware))
    except UserError:
        return False
    return True


def _assumptions(config: Config, batches: Batches, measured: Probe) -> list[str]:
    lines = [
        f"time = steps x the {measured.both.seconds * 1000:,.1f} ms measured for both together, in one process",
        "not included: start-up, validation, checkpoints, the final evaluation, and other jobs on the machine",
        "the store is read as fast as here, where the operating system may have kept parts of it in memory",
        f"loader cores: one thread delivers {_count(batches.per_device / measured.loader.seconds / _num_cores(config))}"
        f" images/s, measured on {_counted(_num_cores(config), 'core')}; twice the cores are twice as fast",
        "N devices: a device is as fast per image with a smaller part of the batch, and sending gradients is free",
    ]
    if config.augmentation.progressive.start_size is not None:
        lines.append(f"all epochs have crops of {config.augmentation.size} pixels; the smaller ones are faster")
    if batches.num_devices > 1:
        lines.append(f"one device was measured with its part of {batches.num_devices}; the others were idle meanwhile")
    # One process has nobody to communicate with, so this cost cannot be measured here.
    if batches.bn == "sync":
        lines.append("synchronized BatchNorm was measured without its communication")
    if accelerator_of(config.hardware) == "cpu":
        lines.append("memory includes parts of the store that the operating system takes back when it needs to")
    return ["assumptions:", *(f"- {line}" for line in lines)]


def _num_cores(config: Config) -> int:
    """Cores that the loader used: its threads, as far as there are cores for them."""
    return min(num_workers(config.hardware), num_granted_cores())


def _device_name(config: Config) -> str:
    if accelerator_of(config.hardware) == "cpu":
        return "the CPU"
    return torch.cuda.get_device_name()


def _device_kind(config: Config) -> str:
    """The name under which a measurement is kept: of the GPU, or of the processor with its number of cores."""
    # Without the host's name: it is to match on every node of a cluster.
    if accelerator_of(config.hardware) == "gpu":
        return torch.cuda.get_device_name()
    # The cores are part of the name: a CPU's time per step depends on how many of them were granted.
    return f"{cpu_name()}, {_counted(num_granted_cores(), 'core')}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return duration(seconds) if seconds < 48 * 3600 else f"{seconds / 3600:,.0f} h"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _count(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"

"""Measure the loader's images per second, and judge how many devices it keeps busy."""

from __future__ import annotations

import math
import time

import torch
from torch.nn.functional import cross_entropy

from tencrop.config import Batches, Config, num_workers
from tencrop.console import rate
from tencrop.doctor.finding import Finding, ok, warning
from tencrop.models.factory import build_model
from tencrop.training.precision import set_precision
from tencrop.training.probe import time_loader

MAX_CPU_BATCH = 8  # images: a training step of ResNet-50 on a CPU takes about 0.2 s an image
WARM_UP_STEPS, MAX_STEPS, MAX_STEP_S = 3, 20, 3.0


def loader_images_per_s(config: Config, batches: Batches) -> float:
    """Images per second from this process's loader, with the recipe's crops and its share of the cores; takes 10 s.

    Raises UserError if an image is damaged or the data are not prepared.
    """
    return batches.per_device / time_loader(config, batches).seconds


def device_images_per_s(config: Config, batches: Batches, *, num_classes: int, device: torch.device) -> float:
    """Images per second of a device: forward and backward passes on one batch, without augmentation and update.

    Leaving these out makes the rate slightly higher than in training, which is the safe side for judging the loader.
    """
    set_precision(config.training.precision)
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    network = build_model(config.model, num_classes=num_classes).to(device).to(memory_format=layout)
    batch = batches.micro_batch if device.type == "cuda" else min(batches.micro_batch, MAX_CPU_BATCH)
    # Random pixels do: the time of a step depends on shapes and layout, and the loader is measured by itself.
    images = torch.randn(batch, 3, config.image_size, config.image_size, device=device).to(memory_format=layout)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    start = time.perf_counter()
    for number in range(WARM_UP_STEPS + MAX_STEPS):
        if number == WARM_UP_STEPS:
            start = _now(device)
        # The host's clock, which runs ahead of a GPU's kernels. So MAX_STEP_S is only approximate; the rate is not,
        # because _now waits before the division.
        elif number > WARM_UP_STEPS and time.perf_counter() - start > MAX_STEP_S:
            break
        with torch.autocast(device.type, torch.bfloat16, enabled=config.training.precision == "bf16"):
            logits = network(images)
            loss = cross_entropy(logits[0] if isinstance(logits, tuple) else logits, labels)
        # Nobody reads the gradients, so they add up from step to step: zeroing them would be one more pass to time.
        loss.backward()
    else:  # no break: the last step counts too
        number += 1
    return batch * (number - WARM_UP_STEPS) / (_now(device) - start)


def judge_loader(loader_per_s: float, device_per_s: float, *, config: Config, device: str) -> list[Finding]:
    """Findings: loader_per_s is the rate of all processes of a node together, device_per_s that of one device."""
    num_fed, num_devices = loader_per_s / device_per_s, config.hardware.devices
    threads = num_workers(config.hardware)
    text = (
        f"{rate(loader_per_s)} with {num_devices} x {threads} threads; {device} takes {rate(device_per_s)} of"
        f" {config.model.name}, so this feeds {num_fed:.3g} of them"
    )
    if num_fed >= num_devices:
        return [ok("loader", text)]
    # Linear in the cores, as train.py plan=true assumes: each thread decodes images of its own.
    num_cores = math.ceil(num_devices * threads * num_devices / num_fed)
    remedy = (
        f"request {num_cores} cores a node, or store smaller or raw images"
        " (prepare.py data.store.short_side=256 data.store.mode=raw)"
    )
    return [warning("loader", f"{text}, and the node has {num_devices}", remedy)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        # Kernels run asynchronously: without this, the time of launching them would be measured.
        torch.cuda.synchronize(device)
    return time.perf_counter()

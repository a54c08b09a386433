"""Checks that the machine has the GPUs that the configuration asks for, for training and evaluation."""

from __future__ import annotations

import torch

from tencrop.config import Hardware, UserError, accelerator_of


def check_num_gpus(hardware: Hardware, num_needed: int) -> None:
    """Raise UserError if `hardware` is of GPUs and torch sees fewer than `num_needed` of them on this machine."""
    if accelerator_of(hardware) == "gpu" and (num_seen := torch.cuda.device_count()) < num_needed:
        remedy = "choose fewer, or hardware=cpu" if num_seen else "set hardware=cpu"
        raise UserError(f"hardware.devices={hardware.devices}: torch sees {num_seen} GPUs here; {remedy}")

"""Versions of the packages, the compiled modules, the GPUs and their driver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import tencrop
from tencrop.cli.choices import CONF
from tencrop.config import Hardware
from tencrop.data.native.decoder import load_library
from tencrop.doctor.finding import Finding, error, ok, warning
from tencrop.progress import format_bytes
from tencrop.records.provenance import EXACT, installed_packages

COMPILED = ("_decode", "_mapped", "_reduce")  # modules of tencrop.data.native
LOCK = CONF.parent / "requirements.lock"  # of a checkout; a wheel has none
# From /proc and not from nvidia-smi, which many containers lack.
DRIVER = Path("/proc/driver/nvidia/version")
# The context of our own process takes less than 1 GB of a GPU with 10 GB or more.
FREE_SHARE = 0.9


def locked_versions(lock: Path = LOCK) -> dict[str, list[str]]:
    """The versions that requirements.lock names, without local parts such as +cu126; empty if there is no such file.

    There may be several of a package, for different versions of Python.
    """
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;+]+)", lock.read_text() if lock.is_file() else "", re.M):
        versions.setdefault(name.lower(), []).append(version)
    return versions


def missing_modules() -> list[str]:
    """Our C modules that cannot be imported."""
    missing = []
    for name in COMPILED:
        try:
            load_library(name)
        # OSError is the dynamic linker's: a library that the module needs is missing on this node.
        except (ImportError, OSError):
            missing.append(name)
    return missing


def judge_versions(installed: Mapping[str, str], locked: Mapping[str, list[str]], missing: list[str]) -> list[Finding]:
    """installed: as `installed_packages` returns it; locked: as `locked_versions`; missing: C modules."""
    named = [f"{name} {installed.get(name, 'missing')}" for name in EXACT]
    found = [ok("versions", f"tencrop {tencrop.__version__}, {', '.join(named)}")]
    others = [
        f"{name} {installed.get(name)} instead of {' or '.join(locked[name])}"
        for name in EXACT
        if name in locked and installed.get(name, "").partition("+")[0] not in locked[name]
    ]
    if others:
        text = f"{', '.join(others)}: weights may differ in the last bits from those of requirements.lock"
        found.append(warning("versions", text, "make install"))
    if missing:
        text = f"compiled modules are missing, or of another Python: {', '.join(missing)}"
        found.append(error("versions", text, "make install, in the environment of the job"))
    return found


def judge_software() -> list[Finding]:
    return judge_versions(installed_packages(), locked_versions(), missing_modules())


@dataclass(frozen=True)
class Gpus:
    """What this process sees. driver: its version, None if none is loaded; cuda: of torch, None for a CPU build."""

    driver: str | None
    cuda: str | None
    names: tuple[str, ...]
    free_bytes: tuple[int, ...] = ()
    total_bytes: tuple[int, ...] = ()


def read_gpus(driver: Path = DRIVER) -> Gpus:
    version = re.search(r"Kernel Module(?: for \w+)?\s+([\d.]+)", driver.read_text()) if driver.is_file() else None
    devices = range(torch.cuda.device_count())
    # This creates a CUDA context on every GPU, which then counts as used: FREE_SHARE leaves room for it.
    memory = [torch.cuda.mem_get_info(device) for device in devices]
    return Gpus(
        driver=None if not driver.is_file() else version[1] if version else "of an unknown version",
        cuda=torch.version.cuda,
        names=tuple(torch.cuda.get_device_name(device) for device in devices),
        free_bytes=tuple(free for free, _ in memory),
        total_bytes=tuple(total for _, total in memory),
    )


def judge_gpus(gpus: Gpus, hardware: Hardware) -> list[Finding]:
    """Whether the node has the GPUs that the configuration asks for, and whether they are free."""
    if hardware.accelerator == "cpu":
        return [ok("gpus", "not used (hardware.accelerator=cpu)")]
    # From cause to effect, first one wins: without a driver, torch also sees no GPU, but that is not what to mend.
    if gpus.driver is None:
        if hardware.accelerator == "auto" and hardware.devices == 1:
            return [ok("gpus", "no NVIDIA driver is loaded: training would run on the CPU")]
        return [error("gpus", "no NVIDIA driver is loaded here", "start it on a node with GPUs, or hardware=cpu")]
    if gpus.cuda is None:
        text = f"torch {torch.__version__} is built for the CPU, but driver {gpus.driver} is loaded"
        return [error("gpus", text, "install torch with CUDA (make install)")]
    if len(gpus.names) < hardware.devices:
        text = f"hardware.devices={hardware.devices}, but torch (CUDA {gpus.cuda}) sees {len(gpus.names)} GPUs"
        remedy = (
            f"request {hardware.devices} (--gpus-per-node={hardware.devices}), unset CUDA_VISIBLE_DEVICES, and compare"
            f" with nvidia-smi; driver {gpus.driver} may be too old for CUDA {gpus.cuda}"
        )
        return [error("gpus", text, remedy)]
    counts = {name: gpus.names.count(name) for name in dict.fromkeys(gpus.names)}
    named = ", ".join(f"{count} x {name}" for name, count in counts.items())
    found = [ok("gpus", f"{named}, driver {gpus.driver}, CUDA {gpus.cuda}")]
    for number, (free, total) in enumerate(zip(gpus.free_bytes, gpus.total_bytes, strict=True)):
        if free < FREE_SHARE * total:
            text = f"GPU {number}: {format_bytes(total - free)} of {format_bytes(total)} are in use"
            found.append(warning("gpus", text, "nvidia-smi names the programs; end them, or request another node"))
    if len(counts) > 1:
        found.append(warning("gpus", f"they differ ({named}): all wait for the slowest", "request GPUs of one type"))
    return found

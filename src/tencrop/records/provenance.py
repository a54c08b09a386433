"""Where a run came from: code, packages, hardware, data, seed, command line; never environment variables.

Called by run_folder, which writes it to manifest.json. Credentials are masked (masking.py).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import tencrop
from tencrop.config import Config
from tencrop.config.code import PACKAGE, code_sha256
from tencrop.printable import printable
from tencrop.records.masking import mask_arguments, mask_text

LEARNING_STAGES = ("config", "data", "models", "training")  # a change to these may change what is learned
EXACT = ("python", "torch", "numpy", "timm", "pytorch-lightning")  # packages whose version may change the last bit
CODE_PATHS = ("src", "conf", ":(glob)*.py", "pyproject.toml")


def provenance(config: Config, data_manifest: dict[str, Any]) -> dict[str, Any]:
    """All that is known at the start of a run, in JSON's types.

    `data_manifest` is the prepared data's (tencrop.data.manifest); its class names and fingerprints are kept, so
    that the run folder stands alone.
    """
    return {
        "tencrop": tencrop.__version__,
        "name": config.name or f"{config.model.name}-{config.data.name}",
        "model": config.model.name,
        "seeds": {"seed": config.seed},
        "session": session(),
        "data": data_facts(config, data_manifest),
    }


def session() -> dict[str, Any]:
    """What may differ each time the same run is continued: when, by which command, with which code, on what."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "code": code_version(),
        "hardware": _hardware(),
        "packages": installed_packages(),
        "allow_tf32": _allow_tf32(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two results of `session` and may change the last bit of the weights, a phrase each."""
    compared = [
        *(("code", name) for name in ("revision", "learning_sha256")),
        *(("hardware", name) for name in ("cpu", "num_torch_threads", "gpus")),
        *(("packages", name) for name in EXACT),
    ]
    return [
        f"{name} was {old}, is {new}"
        for part, name in compared
        if (old := before[part].get(name)) != (new := now[part].get(name))
    ]


def sessions_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a run's manifest, first to last. Earlier code wrote the packages once, those of the first."""
    return [{"packages": manifest.get("packages", {}), **session} for session in manifest["sessions"]]


def command_line() -> str:
    """This process's command, fit to be pasted into a shell where its names are Unicode; credentials masked."""
    spec = sys.modules["__main__"].__spec__  # of python -m MODULE; a script has none
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [os.path.basename(sys.argv[0]) or "-c"]
    return printable(shlex.join(["python", *program, *mask_arguments(sys.argv[1:])]))


def code_version() -> dict[str, Any]:
    """Revision and state of the git checkout that the package runs from (None outside one), and hashes of the code.

    `learning_sha256` covers the stages that decide what is learned, git or not: a report that was reworded does not
    make it another code.
    """
    repository = _repository()
    diff = code_diff()
    return {
        "revision": _git(repository, "rev-parse", "HEAD") or None,
        "remote": mask_text(_git(repository, "remote", "get-url", "origin")) or None,
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "learning_sha256": code_sha256(PACKAGE, LEARNING_STAGES),
    }


def code_diff() -> str:
    """The checkout's code against its last commit, new files included, as a patch; empty without git or changes."""
    repository = _repository()
    diff = _git(repository, "diff", "HEAD", "--no-color", "--no-ext-diff", "--", *CODE_PATHS)
    untracked = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE_PATHS)
    for name in filter(None, untracked.split("\0")):
        diff += _git(repository, "diff", "--no-color", "--no-ext-diff", "--no-index", "--", os.devnull, name)
    return mask_text(diff)


def _repository() -> Path | None:
    """The checkout's root, only where the package in use is that checkout's (not one installed below it)."""
    root = _git(PACKAGE, "rev-parse", "--show-toplevel").strip()
    return Path(root) if root and Path(root, "src", "tencrop").resolve() == PACKAGE else None


def _git(folder: Path | None, *arguments: str) -> str:
    """The output of a git command, without the newline of one line; empty where git or the checkout is missing."""
    if folder is None:
        return ""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = done.stdout.decode("utf-8", "replace")
    return text.strip() if arguments[0] in ("rev-parse", "remote") else text


def changed_split(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The split, train or val, that is no longer as in `before`, of two results of data_facts; None if both are.

    Training depends on the bytes of its store, evaluation on the original images.
    """
    keys = {"train": "store_fingerprint", "val": "source_fingerprint"}
    return next((s for s, key in keys.items() if before["splits"][s][key] != now["splits"][s][key]), None)


def installed_packages() -> dict[str, str]:
    installed = {
        (distribution.metadata["Name"] or "").lower(): distribution.version for distribution in metadata.distributions()
    }
    return {"python": platform.python_version(), **{name: installed[name] for name in sorted(installed) if name}}


def _hardware() -> dict[str, Any]:
    import torch  # seconds; the caller is about to need it

    properties = [torch.cuda.get_device_properties(device) for device in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [gpu.name for gpu in properties],
        "gpu_memory_bytes": [gpu.total_memory for gpu in properties],
        "cuda": torch.version.cuda if properties else None,
        "cudnn": torch.backends.cudnn.version() if properties else None,
        "num_torch_threads": torch.get_num_threads(),
    }


def _allow_tf32() -> dict[str, bool]:
    from tencrop.training.precision import allow_tf32  # imports torch

    return allow_tf32()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def data_facts(config: Config, manifest: dict[str, Any]) -> dict[str, Any]:
    """Which prepared data a run uses: name, folder, counts and fingerprints of the splits, classes."""
    kept = ("num_samples", "source_fingerprint", "store_fingerprint")
    return {
        "name": manifest.get("name", config.data.name),
        "root": mask_text(str(Path(config.data.root).absolute())),
        "splits": {
            split: {key: facts[key] for key in kept if key in facts} for split, facts in manifest["splits"].items()
        },
        "classes": list(manifest["classes"]),
    }

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
from tencrop.records.redaction import redact_arguments, redact_text

LEARNING_STAGES = ("config", "data", "models", "training")  # a change to these may change what is learned
EXACT = ("python", "torch", "numpy", "timm", "pytorch-lightning")  # packages whose version may change the last bit
DRIVER = Path("/dev/nvidiactl")
# Set within hooks, and by those who keep a bare repository of their home: git then reads that one in spite of -C.
# Other variables stay: GIT_CONFIG_COUNT may be how a container declares the checkout safe.
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
CODE_PATHS = ("src", "conf", ":(glob)*.py", "pyproject.toml")


def provenance(config: Config, data_manifest: dict[str, Any]) -> dict[str, Any]:
    """All that is known at the start of a run, in JSON's types.

    `data_manifest` is the prepared data's (tencrop.data.store.manifest); its class names and fingerprints are kept, so
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
        f"{name} was {_known(before[part], old)}, is {_known(now[part], new)}"
        for part, name in compared
        if (old := before[part].get(name)) != (new := now[part].get(name))
    ]


def _known(facts: dict[str, Any], value: Any) -> str:
    if value is None and "not_known" in facts:
        return f"unknown ({facts['not_known']})"
    is_installed = value is None and "installed" in facts
    return f"that of an installed package ({facts['installed']})" if is_installed else str(value)


def sessions_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a run's manifest, first to last. Earlier code wrote the packages once, those of the first."""
    return [{"packages": manifest.get("packages", {}), **session} for session in manifest["sessions"]]


def command_line() -> str:
    """This process's command, fit to be pasted into a shell where its names are Unicode; credentials masked."""
    spec = sys.modules["__main__"].__spec__  # of python -m MODULE; a script has none
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [os.path.basename(sys.argv[0]) or "-c"]
    python = ["python"] if spec or program[0].endswith((".py", "-c")) else []  # not of an installed command
    return printable(shlex.join([*python, *program, *redact_arguments(sys.argv[1:])]))


def code_version() -> dict[str, Any]:
    """Revision and state of the git checkout that the package runs from (None outside one), and hashes of the code.

    Where there is a checkout and git did not answer, `not_known` says why: None is then no "unchanged". Of a package
    that pip installed `installed` is the version.
    `learning_sha256` covers the stages that decide what is learned, git or not: a report that was reworded does not
    make it another code.
    """
    facts: dict[str, Any] = dict.fromkeys(("revision", "remote", "diff_sha256"))
    try:
        if repository := _repository():
            diff = _diff(repository)
            facts = {
                "revision": _revision(repository),
                "remote": redact_text(_git(repository, "remote", "get-url", "origin", fine=(0, 2)).strip()) or None,
                "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
            }
    except GitFailed as error:
        facts["not_known"] = str(error)
    if not _is_of_checkout():
        facts["installed"] = tencrop.__version__
    return facts | {"learning_sha256": code_sha256(PACKAGE, LEARNING_STAGES)}


def code_diff() -> str:
    """The checkout's code against its last commit, new files included, as a patch; empty without changes, a line that
    says why it is not known outside a checkout and where git did not answer."""
    try:
        if repository := _repository():
            return _diff(repository)
        reason = "no git repository" if _is_of_checkout() else f"installed package, version {tencrop.__version__}"
    except GitFailed as error:
        reason = str(error)
    return f"# not known whether the code was changed: {reason}\n"


class GitFailed(Exception):
    """Git did not answer in a checkout, and why: of another owner, not installed, damaged."""


def _diff(repository: Path) -> str:
    limits = ("--", *CODE_PATHS)
    options = ("--no-color", "--no-ext-diff")
    diff = _git(repository, "diff", "HEAD", *options, *limits) if _revision(repository) else ""
    untracked = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", *limits)
    for name in filter(None, untracked.split("\0")):
        if not any(part.startswith(".") for part in name.split("/")):  # an editor's or macOS', and no code
            diff += _git(repository, "diff", *options, "--no-index", "--", os.devnull, name, fine=(0, 1))
    return redact_text(diff)


def _revision(repository: Path) -> str | None:
    """None before the first commit."""
    return _git(repository, "rev-parse", "--verify", "--quiet", "HEAD", fine=(0, 1)).strip() or None


def _repository() -> Path | None:
    """The checkout's root, only where the package in use is that checkout's (not one installed below it)."""
    root = PACKAGE.parents[1]
    return root if _is_of_checkout() and (root / ".git").exists() else None


def _is_of_checkout() -> bool:
    return PACKAGE.parts[-2:] == ("src", "tencrop")


def _git(folder: Path, *arguments: str, fine: tuple[int, ...] = (0,)) -> str:
    """The output of a git command; GitFailed where it ends with another exit code than those that are `fine`.

    Git refuses a folder of another owner, usual in containers. It is not overruled (-c safe.directory): whoever may
    write to .git could then run programs as this user.
    """
    command = ["git", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, env=environment | {"LC_ALL": "C"})
    except OSError as error:
        raise GitFailed(f"git cannot be run ({os.strerror(error.errno or 0)})") from error
    except subprocess.TimeoutExpired as error:
        raise GitFailed("git did not answer within 30 s") from error
    if done.returncode not in fine:
        said = done.stderr.decode("utf-8", "replace").splitlines() or [f"exit code {done.returncode}"]
        mend = f"; git config --global --add safe.directory {folder}" if "dubious ownership" in said[0] else ""
        raise GitFailed(redact_text(f"git failed: {said[0].removeprefix('fatal: ')}{mend}"))
    return done.stdout.decode("utf-8", "replace")


def changed_split(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The split, train or val, that is no longer as in `before`, of two results of data_facts; None if both are.

    Training depends on the bytes of its store, evaluation on the original images.
    """
    keys = {"train": "store_fingerprint", "val": "source_fingerprint"}
    return next((s for s, key in keys.items() if before["splits"][s][key] != now["splits"][s][key]), None)


def installed_packages() -> dict[str, str]:
    installed = {
        (distribution.metadata["Name"] or "").lower(): distribution.version or "unknown"
        for distribution in metadata.distributions()
    }
    return {"python": platform.python_version(), **{name: installed[name] for name in sorted(installed) if name}}


def _hardware() -> dict[str, Any]:
    import torch  # seconds; the caller is about to need it

    properties = [torch.cuda.get_device_properties(device) for device in range(torch.cuda.device_count())]
    unseen = {"not_known": "GPUs: there is a driver, and torch sees none"}
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
        **(unseen if DRIVER.exists() and not properties and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else {}),
    }


def _allow_tf32() -> dict[str, bool]:
    from tencrop.training.precision import allow_tf32  # imports torch

    return allow_tf32()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"unknown ({platform.machine()})"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def data_facts(config: Config, manifest: dict[str, Any]) -> dict[str, Any]:
    """Which prepared data a run uses: name, folder, counts and fingerprints of the splits, classes."""
    kept = ("num_samples", "source_fingerprint", "store_fingerprint")
    return {
        "name": manifest.get("name", config.data.name),
        "root": redact_text(str(Path(config.data.root).absolute())),
        "splits": {
            split: {key: facts[key] for key in kept if key in facts} for split, facts in manifest["splits"].items()
        },
        "classes": list(manifest["classes"]),
    }

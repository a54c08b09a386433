"""Collects the provenance of a run for its manifest.json: code, packages, hardware, data, seed and command line.

Never records environment variables, and redacts credentials everywhere else (redaction.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import tencrop
from tencrop.config import Config, derive_batches
from tencrop.config.batches import hides_all_gpus
from tencrop.config.code import LEARNING, PACKAGE, code_sha256
from tencrop.config.documents import Document
from tencrop.printable import printable
from tencrop.records.manifest import Code, Hardware, Provenance, RunData, RunManifest, Session, Split
from tencrop.records.redaction import redact_arguments, redact_text

# Packages whose version may change the last bits of the weights.
EXACT = ("python", "torch", "numpy", "timm", "pytorch-lightning")
DRIVER = Path("/dev/nvidiactl")  # exists if NVIDIA's driver is loaded
# git sets these within hooks, and some people set GIT_DIR for a repository of their home folder. git then reads that
# repository in spite of -C. Other variables stay: GIT_CONFIG_COUNT may be how a container declares the checkout safe.
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
# Pathspecs of what determines a run. Notes, data and runs in the checkout do not make it "changed".
CODE_PATHS = ("src", "conf", ":(glob)*.py", "pyproject.toml")
# In the root of a snapshot of the code (submission/snapshot.py), which has no .git: `code_version` and `code_diff` of
# the checkout that it was made from.
SNAPSHOT_FILE, DIFF_FILE = "snapshot.json", "code.diff"


def provenance(config: Config, data_manifest: Document) -> Provenance:
    """The provenance known at the start of a run, in JSON types.

    `data_manifest` is the manifest of the prepared data (tencrop.data.store.manifest). Its class names and fingerprints
    are copied, so that the run folder is self-contained.
    """
    return {
        "tencrop": tencrop.__version__,
        "name": config.name or f"{config.model.name}-{config.data.name}",
        "model": config.model.name,
        "seeds": {"seed": config.seed},
        "session": {**session(), "layout": layout_text(config)},
        "data": data_facts(config, data_manifest),
    }


def session() -> Session:
    """Facts that may differ each time a run is resumed: time, command, code, hardware, packages."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "code": code_version(),
        "hardware": _hardware(),
        "packages": installed_packages(),
        "allow_tf32": _allow_tf32(),  # PyTorch's defaults differ between versions, and between matmul and cuDNN
    }


def layout_text(config: Config) -> str:
    """How the global batch is distributed: "8 devices, each 2 micro-batches of 16 images"."""
    batches = derive_batches(config)
    devices = "1 device," if batches.num_devices == 1 else f"{batches.num_devices} devices, each"
    parts = batches.accumulate_grad_batches
    return f"{devices} {parts} micro-batch{'' if parts == 1 else 'es'} of {batches.micro_batch} images"


def differences(before: Session, now: Session) -> list[str]:
    """Changes between two sessions that may affect the last bits of the weights, one phrase each."""
    # Resuming is refused only if learning_sha256 differs (run_folder.py); all of these are printed.
    compared: list[tuple[Mapping[str, object], Mapping[str, object], tuple[str, ...]]] = [
        (before["code"], now["code"], ("revision", "learning_sha256")),
        (before["hardware"], now["hardware"], ("cpu", "num_torch_threads", "gpus")),
        (before["packages"], now["packages"], EXACT),
    ]
    if "layout" in before and "layout" in now:  # earlier code did not record it
        compared.append((before, now, ("layout",)))
    return [
        f"{name} was {_known(was, was.get(name))}, is {_known(is_now, is_now.get(name))}"
        for was, is_now, names in compared
        for name in names
        if was.get(name) != is_now.get(name)
    ]


def _known(facts: Mapping[str, object], value: object) -> str:
    # None alone would be ambiguous: not a checkout, an installed package, or git failed.
    if value is None and "not_known" in facts:
        return f"unknown ({facts['not_known']})"
    is_installed = value is None and "installed" in facts
    return f"that of an installed package ({facts['installed']})" if is_installed else str(value)


def sessions_of(manifest: RunManifest) -> list[Session]:
    """The sessions in a run's manifest, first to last.

    Earlier code stored the packages once per run, those of its first session, instead of once per session.
    """
    earlier = manifest.get("packages", {})
    return [{**session, "packages": session.get("packages", earlier)} for session in manifest["sessions"]]


def command_line() -> str:
    """The command of this process, quoted for a shell, with credentials redacted."""
    spec = sys.modules["__main__"].__spec__  # set for python -m MODULE, None for a script
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [os.path.basename(sys.argv[0]) or "-c"]
    python = ["python"] if spec or program[0].endswith((".py", "-c")) else []  # an installed `tencrop` runs by itself
    return printable(shlex.join([*python, *program, *redact_arguments(sys.argv[1:])]))


def code_version() -> Code:
    """Revision and state of the git checkout that contains the package, and the hash of the code that affects training.

    The git fields are None outside a checkout. If git failed in a checkout, `not_known` gives the reason, so that a
    diff_sha256 of None is not mistaken for "unchanged". For a package installed with pip, `installed` is its version.
    `learning_sha256` covers config.code.LEARNING only and does not need git: a change to a report must not prevent a
    run from being resumed.
    """
    if snapshot := _snapshot():
        of_checkout: Code = json.loads((snapshot / SNAPSHOT_FILE).read_text())
        return {**of_checkout, "learning_sha256": code_sha256(PACKAGE, LEARNING)}
    facts: Code = {
        "revision": None,
        "remote": None,
        "diff_sha256": None,
        "learning_sha256": code_sha256(PACKAGE, LEARNING),
    }
    try:
        if repository := _repository():
            diff = _diff(repository)  # code.diff in the run folder has the text; the manifest identifies it
            remote = redact_text(_git(repository, "remote", "get-url", "origin", ok_codes=(0, 2)).strip())
            facts["revision"], facts["remote"] = _revision(repository), remote or None
            facts["diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    except GitFailed as error:
        facts["not_known"] = str(error)
    if not _is_of_checkout():
        facts["installed"] = tencrop.__version__
    return facts


def code_diff() -> str:
    """The uncommitted changes of the checkout as a patch, including new files; empty without changes.

    Outside a checkout, or if git failed, one comment line with the reason.
    """
    if snapshot := _snapshot():
        return (snapshot / DIFF_FILE).read_text()
    try:
        if repository := _repository():
            return _diff(repository)
        reason = "no git repository" if _is_of_checkout() else f"installed package, version {tencrop.__version__}"
    except GitFailed as error:
        reason = str(error)
    return f"# not known whether the code was changed: {reason}\n"


def code_files() -> list[str]:
    """The checkout's tracked files, and new ones that git does not ignore, that a job needs; else GitFailed."""
    options = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if (repository := _repository()) is None:
        raise GitFailed("this is not a git checkout")
    return _git(repository, *options, "--", *CODE_PATHS, "slurm", "requirements.lock").split("\0")[:-1]


class GitFailed(Exception):
    """git failed in a checkout; the message is the reason: another owner, not installed, damaged."""


def _diff(repository: Path) -> str:
    limits = ("--", *CODE_PATHS)
    options = ("--no-color", "--no-ext-diff")  # a user's git configuration may set both
    diff = _git(repository, "diff", "HEAD", *options, *limits) if _revision(repository) else ""
    # New files count as changes: an experiment is often one new file that is committed later.
    untracked = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", *limits)
    for name in filter(None, untracked.split("\0")):
        if not any(part.startswith(".") for part in name.split("/")):  # hidden files come from editors and macOS
            # `git diff` alone does not show untracked files; --no-index exits with 1 if the files differ.
            diff += _git(repository, "diff", *options, "--no-index", "--", os.devnull, name, ok_codes=(0, 1))
    return redact_text(diff)


def _revision(repository: Path) -> str | None:
    """Hash of HEAD; None before the first commit."""
    return _git(repository, "rev-parse", "--verify", "--quiet", "HEAD", ok_codes=(0, 1)).strip() or None


def _repository() -> Path | None:
    """Root of the checkout, if the package in use is its source and not a copy installed inside it (.venv)."""
    root = PACKAGE.parents[1]
    return root if _is_of_checkout() and (root / ".git").exists() else None


def _snapshot() -> Path | None:
    """Root of the snapshot that the package is in; None for a checkout."""
    root = PACKAGE.parents[1]
    return root if _is_of_checkout() and (root / SNAPSHOT_FILE).is_file() and not (root / ".git").exists() else None


def _is_of_checkout() -> bool:
    return PACKAGE.parts[-2:] == ("src", "tencrop")


def _git(folder: Path, *arguments: str, ok_codes: tuple[int, ...] = (0,)) -> str:
    """The output of a git command. Raises GitFailed for an exit code that is not in `ok_codes`.

    git refuses a repository of another owner, which is common in containers. We do not override this with
    -c safe.directory: anyone who can write to .git could then run programs as this user.
    """
    command = ["git", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    # git's messages are compared below, and must be in English.
    environment["LC_ALL"] = "C"
    try:
        # 30 s: git is slow on a busy network share, but a run must not hang before it starts.
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, env=environment)
    except OSError as error:
        raise GitFailed(f"git cannot be run ({os.strerror(error.errno or 0)})") from error
    except subprocess.TimeoutExpired as error:
        raise GitFailed("git did not answer within 30 s") from error
    if done.returncode not in ok_codes:
        lines = done.stderr.decode("utf-8", "replace").splitlines() or [f"exit code {done.returncode}"]
        remedy = f"; git config --global --add safe.directory {folder}" if "dubious ownership" in lines[0] else ""
        raise GitFailed(redact_text(f"git failed: {lines[0].removeprefix('fatal: ')}{remedy}"))
    return done.stdout.decode("utf-8", "replace")


def changed_split(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The split ("train" or "val") that differs between two results of data_facts; None if neither does.

    Training depends on the stored bytes (resized, re-encoded), evaluation on the original images.
    """
    keys = {"train": "store_fingerprint", "val": "source_fingerprint"}
    return next((s for s, key in keys.items() if before["splits"][s][key] != now["splits"][s][key]), None)


def installed_packages() -> dict[str, str]:
    """Versions of Python and of all installed distributions, by lower-case name."""
    # A damaged installation may have distributions without name or version.
    installed = {
        (distribution.metadata["Name"] or "").lower(): distribution.version or "unknown"
        for distribution in metadata.distributions()
    }
    return {"python": platform.python_version(), **{name: installed[name] for name in sorted(installed) if name}}


def _hardware() -> Hardware:
    import torch  # takes seconds, but the caller is about to need it anyway

    properties = [torch.cuda.get_device_properties(device) for device in range(torch.cuda.device_count())]
    hardware: Hardware = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),  # of this process, which may be fewer than the machine's
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [gpu.name for gpu in properties],
        "gpu_memory_bytes": [gpu.total_memory for gpu in properties],
        "cuda": torch.version.cuda if properties else None,
        "cudnn": torch.backends.cudnn.version() if properties else None,
        "num_torch_threads": torch.get_num_threads(),  # changes the order of sums on a CPU, and so the last bits
    }
    if DRIVER.exists() and not properties and not hides_all_gpus():
        hardware["not_known"] = "GPUs: a driver is loaded, but torch finds no GPU"
    return hardware


def _allow_tf32() -> dict[str, bool]:
    from tencrop.training.precision import allow_tf32  # imports torch

    return allow_tf32()


def cpu_name() -> str:
    """The processor's model name, as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"unknown ({platform.machine()})"
    # x86 only; ARM kernels print no model name.
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def data_facts(config: Config, manifest: Document) -> RunData:
    """The prepared data that a run uses: name, folder, counts and fingerprints of the splits, classes."""
    # Fingerprints, not paths, identify the data: a prepared folder may be moved, and another take its place.
    splits: dict[str, Split] = {
        name: {
            "num_samples": facts["num_samples"],
            "source_fingerprint": facts["source_fingerprint"],
            "store_fingerprint": facts["store_fingerprint"],
        }
        for name, facts in manifest["splits"].items()
    }
    return {
        "name": manifest.get("name", config.data.name),
        "root": redact_text(str(Path(config.data.root).absolute())),
        "splits": splits,
        "classes": list(manifest["classes"]),
    }

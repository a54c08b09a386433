"""Compute nodes may be restricted: no network, no home folder, little room in /tmp and /dev/shm, umask 077, C locale.

Namespaces of the kernel imitate them, without SLURM. prepare.py, train.py, evaluate.py and report.py must work on each.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.loopback import ROOT

# Shell commands that restrict the programs after them; $FOLDER is empty and writable. /proc/none cannot be made.
LIMITS = {
    "no network": "ip link set lo up",
    "no home folder": "export HOME=/proc/none",
    "read-only home folder": 'mount --bind "$FOLDER" "$FOLDER" && mount -o remount,bind,ro "$FOLDER"; HOME=$FOLDER',
    "16 MB in /tmp": 'mount -t tmpfs -o size=16m tmpfs "$FOLDER"; export TMPDIR=$FOLDER',
    "64 MB in /dev/shm": "mount -t tmpfs -o size=64m tmpfs /dev/shm",
    "umask 077": "umask 077",
    "C locale": "export LC_ALL=C; unset LANG",
}
TOGETHER = [name for name in LIMITS if name != "read-only home folder"]
WORDS = ["experiment=lenet5_digits", "data.root=digits", "training.max_steps=20", "hardware.workers=1"]
# wandb as on a node without network; libraries that take HOME for their caches must not find these.
VARIABLES = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
CACHES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Skip the test where the kernel gives no namespaces to this user, as in most containers."""
    if missing := [name for name in ("unshare", "ip") if shutil.which(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: apt-get install util-linux iproute2")
    done = subprocess.run(["unshare", "-rnm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no namespaces for this user ({done.stderr.strip()})")


def run_restricted(limits: list[str], folder: Path, *, hardware: str) -> tuple[str, str]:
    """Prepare the digits, train, evaluate and report, all in `folder`; returns what they print, and the weights.

    The weights as their hash.
    """
    own = folder / "own"
    own.mkdir(parents=True)
    train = [*WORDS, f"hardware={hardware}"]
    programs = [
        ["prepare.py", "data=digits", "data.root=digits"],
        ["train.py", *train],
        ["evaluate.py", *train, "protocol=five_crop"],
        ["report.py", "runs=[runs]", "output=report"],
    ]
    run = "\n".join(f'"$PYTHON" "$ROOT"/{words[0]} {shlex.join(words[1:])}' for words in programs)
    script = "\n".join(["set -e", *(LIMITS[name] for name in limits), run])
    environment = {name: value for name, value in os.environ.items() if name not in CACHES} | VARIABLES
    environment |= {"FOLDER": str(own), "PYTHON": sys.executable, "ROOT": str(ROOT)}
    command = ["unshare", "-rm", *(["--net"] if "no network" in limits else []), "bash", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, encoding="utf-8")
    assert done.returncode == 0, f"{limits}: {done.stdout}"
    (manifest,) = folder.glob("runs/*/seed0-*/manifest.json")
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    assert (manifest.parent / "predictions" / "five_crop.result.json").exists()
    return done.stdout, json.loads(manifest.read_text())["result"]["weights_sha256"]


def assert_calm(said: str) -> None:
    """Nothing of what libraries say when a folder is missing."""
    for words in ("Traceback", "warning", "wandb: failed", "wandb: not tracked", "mkdir", "INFO", "Errno"):
        assert words not in said, said


def test_all_restrictions_together(tmp_path):
    said, _ = run_restricted(TOGETHER, tmp_path / "restricted", hardware="cpu")
    assert_calm(said)
    written = [path for path in (tmp_path / "restricted").rglob("*") if path.is_file()]
    assert len(written) > 20 and not any(path.stat().st_mode & 0o077 for path in written)


@pytest.mark.long
def test_each_restriction_gives_the_same_weights(tmp_path):
    """With two processes, which also meet and communicate on such a node."""
    _, reference = run_restricted([], tmp_path / "free", hardware="ddp_cpu2")
    for number, name in enumerate(LIMITS):
        said, weights = run_restricted([name], tmp_path / str(number), hardware="ddp_cpu2")
        assert_calm(said)
        assert weights == reference, name

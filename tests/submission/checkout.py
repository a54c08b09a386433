"""A copy of this checkout, which a test may edit and submit from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.submission.snapshot import ROOT, snapshot_files

WRITTEN = (
    "slurm/cluster.sh",
    "snapshot.json",
    "packages.json",
    "code.diff",
)  # files of a snapshot that a checkout does not have


def copy_checkout(root: Path) -> Path:
    """Copy the code of this checkout, compiled modules included, to a new folder, and commit it there."""
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    for name, content in snapshot_files("").items():
        if name not in WRITTEN:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
            (root / name).chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
    (root / ".gitignore").write_text("*.so\n__pycache__/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "test"]):
        git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", *words)
    return root


def git(root: Path, *words: str) -> str:
    """What a git command prints in this checkout."""
    done = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def run(root: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this checkout with its own code."""
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, script, *words]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

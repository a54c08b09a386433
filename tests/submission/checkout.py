"""A copy of this checkout, which a test may edit and submit from, and a table for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.submission.snapshot import ROOT, snapshot_files

# Files of a snapshot that a checkout does not have.
WRITTEN = ("slurm/cluster.sh", "snapshot.json", "packages.json", "code.diff")
# A file of conf/errors: two recipes, the first with two seeds. CHAIN adds runs that start from those of other rows.
TABLE = """
title: "LeNet-5 on the digits"
source: "a test"
data: digits
split: val
unit: error
columns: [top1]
protocol: {name: center, side: 36, size: 32, region: square, resize: shorter_side, filter: bilinear, average: softmax}
num_seeds: 2
rows:
  - {id: base, row: "base", top1: null, experiment: lenet5_digits}
  - {id: slow, row: "slow", top1: null, num_seeds: 1, experiment: lenet5_digits, overrides: ["optimizer.lr=0.01"]}
"""
CHAIN = """
  - {id: tuned, row: "tuned", top1: null, experiment: lenet5_digits, overrides: ["optimizer.lr=0.001"], init_from: base}
  - {id: last, row: "last", top1: null, num_seeds: 1, experiment: lenet5_digits, overrides: ["optimizer.lr=0.0002"],
     init_from: tuned}
"""


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

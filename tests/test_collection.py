"""Every process collects the same tests: pytest-xdist's workers compare their lists and stop where they differ."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def collected(hash_seed: str) -> list[str]:
    """The identifiers of all tests, in order, as a process of that hash seed collects them at this moment."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    # A subprocess is no worker: xdist's variables would make it report to this one's.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return [line for line in result.stdout.splitlines() if "::" in line]


def test_the_list_depends_on_neither_time_nor_process():
    """
    One after the other, so that the clock has moved on by seconds: an identifier made of a value that holds the
    time (gzip's header), the process or a set's order ended `make test` before its first test, now and then.
    """
    first, second = collected("1"), collected("2")
    assert len(first) > 1000
    assert first == second

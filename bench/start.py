"""How long the commands take to start, and how much memory: --help, a refused key, the quickstart's first step.

    python bench/start.py [--root DIGITS] [--rounds 5] [--imports]

DIGITS is a folder that `prepare.py data=digits` made. Every measurement is a fresh process; the first round, which
reads files from the disk, is not counted. Printed: minimum, median and maximum of the wall-clock time, the median of
the CPU time, which other jobs on the machine affect less, and the peak memory. The time to the first step ends when
the first row of metrics.jsonl is there. --imports also lists the ten modules whose own import takes longest
(python -X importtime, CPU and disk of one process).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
QUICKSTART = ("experiment=lenet5_digits", "training.max_steps=1", "log_every_steps=1", "tracker=none")


@dataclass(frozen=True)
class Start:
    """One command: its arguments, the goal in seconds, the exit code that it must have."""

    name: str
    words: tuple[str, ...]
    goal_s: float
    exit_code: int = 0
    trains: bool = False


@dataclass(frozen=True)
class Cost:
    wall_s: float
    processor_s: float
    memory_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="prepared/digits", metavar="DIGITS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", action="store_true")
    options = parser.parse_args()
    if not Path(options.root, "manifest.json").exists():
        parser.error(f"{options.root} is not prepared; run python prepare.py data=digits data.root={options.root}")
    starts = (
        Start("--help", ("--help",), 1.0),
        Start("a refused key", ("optimizer.lrr=0.1",), 0.7, exit_code=2),
        Start("first step", (*QUICKSTART, f"data.root={Path(options.root).resolve()}"), 8.0, trains=True),
    )
    costs: dict[str, list[Cost]] = {start.name: [] for start in starts}
    for number in range(options.rounds + 1):
        for start in starts:
            cost = measure(start)
            costs[start.name] += [cost] if number > 0 else []
    print(f"{'':16s}{'goal s':>8s}{'least':>8s}{'median':>8s}{'most':>8s}{'CPU s':>8s}{'MB':>7s}   of {options.rounds}")
    for start in starts:
        walls = [cost.wall_s for cost in costs[start.name]]
        processor = statistics.median(cost.processor_s for cost in costs[start.name])
        memory = statistics.median(cost.memory_mb for cost in costs[start.name])
        print(
            f"{start.name:16s}{start.goal_s:8.1f}{min(walls):8.2f}{statistics.median(walls):8.2f}{max(walls):8.2f}"
            f"{processor:8.2f}{memory:7.0f}"
        )
    if options.imports:
        for start in starts:
            print_slowest_imports(start)
    return 0


def measure(start: Start) -> Cost:
    """Run the command; the time ends with it, or with the first row of metrics.jsonl where it trains."""
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+") as errors:
        begin, wall_s, pid = time.perf_counter(), None, 0
        process = subprocess.Popen(command(start, runs), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=errors)
        while pid == 0:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)  # unlike Popen.wait, it returns the usage
            if wall_s is None and any(path.stat().st_size for path in Path(runs).glob("*/*/metrics.jsonl")):
                wall_s = time.perf_counter() - begin
            time.sleep(0.005)
        wall_s = wall_s or time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        assert process.returncode == start.exit_code, f"train.py {' '.join(start.words)}: {errors.read()}"
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def command(start: Start, runs: str, *flags: str) -> list[str]:
    return [sys.executable, *flags, "train.py", *start.words, *([f"runs={runs}"] if start.trains else [])]


def print_slowest_imports(start: Start) -> None:
    with tempfile.TemporaryDirectory() as runs:
        done = subprocess.run(
            command(start, runs, "-X", "importtime"), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    lines = re.findall(r"import time: +([0-9]+) \| +([0-9]+) \| +(\S+)", done.stderr)
    own = sorted(((int(alone), name) for alone, _, name in lines), reverse=True)
    total = sum(microseconds for microseconds, _ in own)
    print(f"\n{start.name}: {len(own)} modules, {total / 1e6:.2f} s; the ten slowest, without what they import")
    for microseconds, name in own[:10]:
        print(f"{microseconds / 1000:8.1f} ms  {name}")


if __name__ == "__main__":
    sys.exit(main())

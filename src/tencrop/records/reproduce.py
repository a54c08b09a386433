"""Repeats a finished run, given only its folder, and compares the final weights bit for bit.

    python -m tencrop.records.reproduce RUN_DIR [--into DIR]

Exit codes: 0 same weights, 1 different weights, 2 invalid input, and those of train.py.
"""

from __future__ import annotations

from signal import SIG_IGN, SIGINT, SIGTERM, SIGUSR1, signal

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports, which take seconds: Ctrl-C would print a traceback

import argparse
import dataclasses
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from omegaconf import OmegaConf

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import UserError
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.documents import literal
from tencrop.config.run_config import read_config
from tencrop.config.writable import check_writable
from tencrop.data.store.manifest import read_manifest
from tencrop.files import atomic_write
from tencrop.printable import print_any_text
from tencrop.records.manifest import RunManifest
from tencrop.records.provenance import changed_split, differences, session, sessions_of
from tencrop.records.run_folder import read_run_manifest

CONFIG_FILE = "reproduce.yaml"


def reproduce(run_dir: Path, into: Path) -> bool:
    """Repeat the run in `run_dir` in a new folder below `into`; returns whether the weights are identical.

    First prints the differences in code, packages and hardware. Raises UserError if the run is not complete, its data
    have changed, `into` is not empty, or the training does not complete.
    """
    before = read_run_manifest(run_dir)
    if before["result"]["status"] != "complete":
        raise UserError(f"{run_dir}: not complete ({before['result']['status']}); run train.py to its end first")
    # Everything is checked before the training, which may take days.
    check_writable(into / CONFIG_FILE, remedy="make room, or name another folder with --into DIR")
    # A reproduction that was refused before it began (for a stray LOCAL_RANK, say) leaves only reproduce.yaml.
    if into.exists() and any(path.name != CONFIG_FILE for path in into.iterdir()):
        raise UserError(f"{into}: not empty; name a fresh folder with --into DIR")
    _check_data(run_dir, before)
    for line in what_differs(before):
        print(f"differs: {line}")
    train_again(run_dir, into)
    (again,) = into.glob("*/*/manifest.json")  # exactly one, since `into` was empty: NAME/seedK-HASH
    after = read_run_manifest(again.parent)
    if after["result"]["status"] != "complete":
        raise UserError(f"{again.parent}: training ended {after['result']['status']}")
    print(f"{run_dir}: {before['result']['weights_sha256']}")
    print(f"{again.parent}: {after['result']['weights_sha256']}")
    return before["result"]["weights_sha256"] == after["result"]["weights_sha256"]


def train_again(run_dir: Path, into: Path) -> None:
    """Train without a tracker, with the resolved configuration of `run_dir`; exits with the exit code unless it is 0.

    Hydra reads a copy in `into` that contains only the keys of a Config. In the original file, which may be a
    stranger's, Hydra would obey a `hydra` section, a defaults list and interpolations.
    """
    config = dataclasses.asdict(config_of_run(run_dir, [], conf=CONF))
    # Neither key is a learning key, so the repeated run has the same hash and folder name.
    config["runs"], config["tracker"]["name"] = str(into.resolve()), "none"
    into.mkdir(parents=True, exist_ok=True)
    atomic_write(into / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(literal(config))).encode())
    config_file = ["--config-path", str(into.resolve()), "--config-name", Path(CONFIG_FILE).stem]
    command = [sys.executable, "-m", "tencrop", "train", *config_file]
    # A process of its own: the training must start like the original, with no state of this process.
    overrides = ["hydra.run.dir=.", "hydra.output_subdir=null"]
    # The copy has no defaults list, so what conf/train.yaml says about Hydra is repeated here.
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    if exit_code := run_and_forward([*command, *overrides, *quiet]):
        raise SystemExit(exit_code)  # train.py has printed the reason; 75 tells a scheduler to try again


def run_and_forward(command: list[str]) -> int:
    """The exit code of a command, 128 + N where signal N ended it; SIGTERM and SIGUSR1 are forwarded to it.

    They would end this process alone, and the training would continue unseen. It writes its checkpoint and ends by
    itself; so it does at Ctrl-C, which a terminal sends to both.
    """
    before = {SIGINT: signal(SIGINT, SIG_IGN)}
    process = subprocess.Popen(command)
    try:
        for number in (SIGTERM, SIGUSR1):
            before[number] = signal(number, lambda number, _: process.send_signal(number))
        exit_code = process.wait()
    finally:
        for number, handler in before.items():
            signal(number, handler)
    return exit_code if exit_code >= 0 else 128 - exit_code


def what_differs(before: RunManifest) -> list[str]:
    """Differences from the run's sessions and between them, one phrase each; any of them may explain other weights."""
    sessions = sessions_of(before)
    lines = differences(sessions[0], session())
    for number, (one, following) in enumerate(pairwise(sessions), 2):
        lines += [f"in session {number} of the run, {line}" for line in differences(one, following)]
    # Resuming is exact, but each resume is one more thing to suspect if the weights differ.
    if len(sessions) > 1:
        lines.append(f"the run was continued {len(sessions) - 1} times")
    return lines


def _check_data(run_dir: Path, before: RunManifest) -> None:
    data = read_config(run_dir)["data"]
    if split := changed_split(before["data"], read_manifest(data["root"], data["name"])):
        remedy = f"prepare the original data again, or set data.root to their folder in {run_dir}/config.yaml"
        raise UserError(f"data.root={data['root']}: its {split} images are not those of {run_dir}; {remedy}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m tencrop.records.reproduce` and `tencrop reproduce`."""
    parser = argparse.ArgumentParser(prog="python -m tencrop.records.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="folder of a complete run: runs/NAME/seed0-HASH")
    parser.add_argument("--into", type=Path, help="new folder for the repeated run (default: RUN_DIR/reproduced)")
    print_any_text()
    options = parser.parse_args(arguments)
    try:
        is_same = reproduce(options.run_dir, options.into or options.run_dir / "reproduced")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {disk_sentence(error)}", file=sys.stderr)
        return 2
    print("the same weights, bit for bit" if is_same else "different weights")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())

"""Runs a finished run again from its folder alone and compares the final weights bit for bit.

    python -m tencrop.records.reproduce RUN_DIR [--into DIR]

Exit codes: 0 the same weights, 1 other weights, 2 wrong input, and those of train.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGTERM, SIGUSR1, signal
from typing import Any

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before the imports below; nothing here is long, but the training is

from omegaconf import OmegaConf

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import (
    config_of_run,
)
from tencrop.config import (
    UserError,
)
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.documents import literal
from tencrop.config.run_config import (
    read_config,
)
from tencrop.config.writable import check_writable
from tencrop.data.store.manifest import read_manifest
from tencrop.files import atomic_write
from tencrop.printable import print_any_text
from tencrop.records.provenance import changed_split, differences, session, sessions_of
from tencrop.records.run_folder import read_run_manifest

CONFIG_FILE = "reproduce.yaml"


def reproduce(run_dir: Path, into: Path) -> bool:
    """Train again what lies in `run_dir`, in a fresh folder below `into`; True if the weights are the same bits.

    Prints what differs beforehand in code, packages, hardware and data. Raises UserError where the run is not
    complete, the data are others, `into` holds something, or training ends otherwise than complete.
    """
    before = read_run_manifest(run_dir)
    if before["result"]["status"] != "complete":
        raise UserError(f"{run_dir}: not complete ({before['result']['status']}); run train.py to its end first")
    check_writable(into / CONFIG_FILE, mend="make room, or name another folder with --into DIR")
    # reproduce.yaml alone is of a reproduction that was refused before it began: by a stray LOCAL_RANK, say
    if into.exists() and any(path.name != CONFIG_FILE for path in into.iterdir()):
        raise UserError(f"{into}: not empty; name a fresh folder with --into DIR")
    _check_data(run_dir, before)
    for line in what_differs(before):
        print(f"differs: {line}")
    train_again(run_dir, into)
    (again,) = into.glob("*/*/manifest.json")
    after = read_run_manifest(again.parent)
    if after["result"]["status"] != "complete":
        raise UserError(f"{again.parent}: training ended {after['result']['status']}")
    print(f"{run_dir}: {before['result']['weights_sha256']}")
    print(f"{again.parent}: {after['result']['weights_sha256']}")
    return before["result"]["weights_sha256"] == after["result"]["weights_sha256"]


def train_again(run_dir: Path, into: Path) -> None:
    """Train, untracked, with the resolved configuration of `run_dir`; its exit code other than 0 ends this.

    Hydra reads a copy in `into`, made of the keys that a run has: it would obey a section `hydra`, a list of defaults
    and interpolations in the run's own file, which may be a stranger's.
    """
    config = dataclasses.asdict(config_of_run(run_dir, [], conf=CONF))
    config["runs"], config["tracker"]["name"] = str(into.resolve()), "none"
    into.mkdir(parents=True, exist_ok=True)
    atomic_write(into / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(literal(config))).encode())
    config_file = ["--config-path", str(into.resolve()), "--config-name", Path(CONFIG_FILE).stem]
    command = [sys.executable, "-m", "tencrop", "train", *config_file]
    overrides = ["hydra.run.dir=.", "hydra.output_subdir=null"]
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    if exit_code := run_and_forward([*command, *overrides, *quiet]):
        raise SystemExit(exit_code)


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


def what_differs(before: dict[str, Any]) -> list[str]:
    """What differs from the run's sessions, a phrase each; any of it may explain other weights."""
    sessions = sessions_of(before)
    lines = differences(sessions[0], session())
    for number, (one, following) in enumerate(pairwise(sessions), 2):
        lines += [f"in session {number} of the run, {line}" for line in differences(one, following)]
    if len(sessions) > 1:
        lines.append(f"the run was continued {len(sessions) - 1} times")
    return lines


def _check_data(run_dir: Path, before: dict[str, Any]) -> None:
    data = read_config(run_dir)["data"]
    if split := changed_split(before["data"], read_manifest(data["root"], data["name"])):
        mend = f"prepare the run's own again, or name their folder as data.root in {run_dir}/config.yaml"
        raise UserError(f"data.root={data['root']}: its {split} images are not those of {run_dir}; {mend}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tencrop.records.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--into", type=Path, help="fresh folder (default: RUN_DIR/reproduced)")
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
    print("the same weights, bit for bit" if is_same else "other weights")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())

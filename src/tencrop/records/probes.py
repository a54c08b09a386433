"""Keeps what train.py plan=true has measured, one file per recipe, kind of device and number of devices.

commands/plan.py writes RUNS/plans/HASH-DEVICE-NUMBER.json; report.py table=NAME plan=true reads these files.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tencrop.config import Config, UserError, learning_hash
from tencrop.config.documents import Between, read_json
from tencrop.config.schema import Init
from tencrop.files import atomic_write

FOLDER = "plans"  # within a folder of runs
SHAPE = {
    "recipe": str,
    "device": str,
    "num_devices": Between(1, 1 << 20),
    "seconds_per_step": Between(0.0, 1e9),
    "num_steps": Between(1, 10**12),
}


@dataclass(frozen=True)
class SavedProbe:
    """The time of an optimizer step of a recipe on one kind of device."""

    recipe: str  # recipe_hash of the configuration
    device: str  # the GPU's name, or the processor's name and its number of cores
    num_devices: int  # that share the global batch
    seconds_per_step: float
    num_steps: int  # of the whole training

    @property
    def device_hours(self) -> float:
        """Hours of the whole training, times the number of devices."""
        return self.num_devices * self.num_steps * self.seconds_per_step / 3600


def recipe_hash(config: Config) -> str:
    """The learning hash without training.init: the weights that a training starts from do not change its time."""
    return learning_hash(replace(config, training=replace(config.training, init=Init())))


def probe_file(runs: Path, recipe: str, device: str, num_devices: int) -> Path:
    """Where the measurement of a recipe on a number of devices is kept."""
    kind = re.sub(r"[^A-Za-z0-9._-]+", "_", device)
    return runs / FOLDER / f"{recipe}-{kind}-{num_devices}.json"


def save_probe(runs: Path, probe: SavedProbe) -> Path:
    """Write a measurement, over an earlier one of the same recipe and devices; returns the file."""
    path = probe_file(runs, probe.recipe, probe.device, probe.num_devices)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(dataclasses.asdict(probe), indent=1) + "\n").encode())
    return path


def read_probe(path: Path) -> SavedProbe:
    """Read a measurement. Raises UserError if the file is broken."""
    content = read_json(path, SHAPE, what="a measurement of train.py plan=true", remedy="delete it and measure again")
    return SavedProbe(**{field.name: content[field.name] for field in dataclasses.fields(SavedProbe)})


def read_probes(runs: Iterable[Path], on_broken: Callable[[UserError], None]) -> list[SavedProbe]:
    """All measurements in some folders of runs, sorted by file; a broken file is passed to `on_broken` and left out."""
    found = []
    for path in sorted({path for folder in runs for path in (folder / FOLDER).glob("[!.]*.json")}):
        try:
            found.append(read_probe(path))
        except UserError as error:
            on_broken(error)
    return found

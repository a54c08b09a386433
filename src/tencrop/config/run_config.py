"""Reads the config.yaml of a run folder as data: nothing in it is interpolated, instantiated or obeyed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tencrop.config.documents import FILE_NAME, Between, read_json, read_yaml
from tencrop.config.loader import CONFIG_FORMAT, in_present_terms
from tencrop.config.schema import UserError

CONFIG = "the configuration of a run of this version"
MEND = "bring it back from a copy, or train it again"
# what whoever received a run folder may have to change in its config.yaml: where the data lie, what it runs on
OF_THE_PLACE = {"hardware", "tracker", "runs"}
OF_THE_PLACE_DATA = {"root", "source"}
# What is read of a run's configuration as it stands, without the types of now: runs of earlier code have fewer keys.
CONFIG_SHAPE = {
    "config_format?": Between(1, CONFIG_FORMAT),
    "seed": int,
    "image_size": int,
    "short_side": (int, None),
    "name?": (str, None),
    "data": {"name": str, "root": FILE_NAME, "source": (FILE_NAME, None)},
    "model": {"name": str, "kwargs": {str: object}},
    "augmentation": {"filter?": str},
    "schedule": {"name": str},
    "training": {"epochs": (int, None), "max_steps": (int, None), "ema_decay?": (float, None)},
    "protocol": {"name": str, "side?": (int, None, [(int, None)]), "region?": str, "average?": str},
    "claim?": (
        None,
        {
            "top1_error": (float, None),
            "top5_error": (float, None),
            "data": str,
            "split": str,
            "protocol": str,
            "source": str,
        },
    ),
}


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.yaml of a run folder, as data: nothing in it is interpolated, instantiated or obeyed. What earlier code
    called otherwise has its present name.

    Raises UserError where it is missing or broken, or not what the run began with (as far as the manifest beside it
    says; that of earlier code has no digest of it).
    """
    path, manifest = run_dir / "config.yaml", run_dir / "manifest.json"
    config = read_written_config(path)
    if manifest.exists():
        mend = "bring it back from a copy, or delete the folder and train again"
        begun = read_json(manifest, {"config_sha256?": str}, what="the manifest of a run folder", mend=mend)
        if begun.get("config_sha256") not in (None, config_sha256(config)):
            raise UserError(
                f"{path}: not what the manifest beside it was written with: one is changed, or another run's; {MEND}"
            )
    return in_present_terms(config)


def read_written_config(path: Path) -> dict[str, Any]:
    """A config.yaml as it was written; UserError where it is missing or broken."""
    return read_yaml(path, CONFIG_SHAPE, what=CONFIG, mend=MEND)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256, hexadecimal, of the content of a config.yaml but for what is of the place where it lies."""
    kept = {key: value for key, value in config.items() if key not in OF_THE_PLACE}
    kept["data"] = {key: value for key, value in config["data"].items() if key not in OF_THE_PLACE_DATA}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_run_folder(folder: Path) -> bool:
    """Whether train.py made this folder for a run. Other programs write a config.yaml, too."""
    return (folder / "config.yaml").exists() and (folder / "manifest.json").exists()

"""Reads the config.yaml of a run folder, which may be a stranger's, as plain data.

Nothing in it is interpolated or instantiated, and it is never passed to Hydra, which would obey its `hydra` section.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tencrop.config.documents import FILE_NAME, Between, Document, read_json, read_yaml
from tencrop.config.loader import CONFIG_FORMAT, upgrade_config
from tencrop.config.schema import UserError

CONFIG = "the configuration of a run of this version"
REMEDY = "restore it from a copy, or train it again"
# Keys that depend on the machine. A person who receives a run folder may edit them, so config_sha256 leaves them out.
LOCATION_KEYS = {"hardware", "tracker", "runs"}
LOCATION_DATA_KEYS = {"root", "source", "stage", "keep_stage"}
# The keys that are read from a run's configuration without validating it as a Config; runs of earlier code have fewer.
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
    "training": {"epochs": (int, None), "steps?": (int, None), "max_steps": (int, None), "ema_decay?": (float, None)},
    "protocol": {"name": str, "side?": (int, None, [(int, None)]), "region?": str, "average?": str},
}


def read_config(run_dir: Path) -> Document:
    """The config.yaml of a run folder as plain data, upgraded to the current format.

    Raises UserError if it is missing, broken, or differs from the configuration that the run began with. The latter is
    detected by the digest in manifest.json, which runs of earlier code do not have.
    """
    path, manifest = run_dir / "config.yaml", run_dir / "manifest.json"
    config = read_written_config(path)
    if manifest.exists():
        remedy = "restore it from a copy, or delete the folder and train again"
        begun = read_json(manifest, {"config_sha256?": str}, what="the manifest of a run folder", remedy=remedy)
        if begun.get("config_sha256") not in (None, config_sha256(config)):
            raise UserError(
                f"{path}: does not match the manifest beside it: one was changed, or belongs to another run; {REMEDY}"
            )
    return upgrade_config(config)


def read_written_config(path: Path) -> Document:
    """A config.yaml as it was written, in any format. Raises UserError if it is missing or broken."""
    return read_yaml(path, CONFIG_SHAPE, what=CONFIG, remedy=REMEDY)


def config_sha256(config: Document) -> str:
    """SHA-256, hexadecimal, of the content of a config.yaml without its location-dependent keys."""
    # From parsed content, so that a changed comment or indentation is no change.
    kept = {key: value for key, value in config.items() if key not in LOCATION_KEYS}
    kept["data"] = {key: value for key, value in config["data"].items() if key not in LOCATION_DATA_KEYS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_run_folder(folder: Path) -> bool:
    """Whether train.py created this folder. A config.yaml alone does not tell: other programs write one too."""
    return (folder / "config.yaml").exists() and (folder / "manifest.json").exists()

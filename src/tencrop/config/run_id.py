"""Which run a configuration means: its learning keys, their hash, its folder; and whether data fit it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tencrop.config.schema import Config, UserError

NOT_LEARNED = {
    "seed", "hardware", "tracker", "claim", "name", "runs", "deterministic", "log_every_steps", "protocol",
    "checkpoint_every_steps", "allow_other_code", "checkpoint", "weights", "ema", "save_views", "output",
}  # fmt: skip
NOT_LEARNED_DATA = {"root", "source", "loader", "splits", "undecodable", "num_classes", "check_md5", "subset"}


def learning_keys(config: Config) -> dict[str, Any]:
    """The part of the configuration that changes what is learned (the seed stands in the folder's name)."""
    values = dataclasses.asdict(config)
    values["data"] = {key: value for key, value in values["data"].items() if key not in NOT_LEARNED_DATA}
    if config.data.loader == "ffcv":  # its pixels are not those of the other loaders
        values["data"]["loader"] = "ffcv"
    values["augmentation"] = _without_what_is_off(values["augmentation"])
    return {key: value for key, value in values.items() if key not in NOT_LEARNED}


def _without_what_is_off(augmentation: dict[str, Any]) -> dict[str, Any]:
    """The settings of an augmentation that a recipe does without change nothing; so older runs keep their names too."""
    is_off = {
        "jitter": not any(augmentation["jitter"][key] for key in ("brightness", "contrast", "saturation", "hue")),
        "randaugment": augmentation["randaugment"]["num_ops"] == 0,
        "erasing": augmentation["erasing"]["prob"] == 0,
        "mixing": augmentation["mixing"]["mix_group"] is None,
        "repeats": augmentation["repeats"] == 1,
    }
    return {key: value for key, value in augmentation.items() if not is_off.get(key)}


def learning_hash(config: Config) -> str:
    """8 hex digits of the learning keys."""
    canonical = json.dumps(learning_keys(config), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_path(config: Config) -> Path:
    """runs/<experiment or model-data>/seed<k>-<hash>; nothing is created."""
    name = config.name or f"{config.model.name}-{config.data.name}"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return Path(config.runs) / name / f"seed{config.seed}-{learning_hash(config)}"


def check_data(config: Config, manifest: dict[str, Any]) -> int:
    """The number of classes, after comparing the configuration with the prepared data; UserError where they differ."""
    if manifest["name"] != config.data.name:  # run, tables and claim would speak of other data
        raise UserError(
            f"data.name={config.data.name}: {config.data.root} was prepared as {manifest['name']};"
            f" set data={manifest['name']} or name another data.root"
        )
    prepared = len(manifest["classes"])
    if config.data.num_classes not in (None, prepared):
        raise UserError(
            f"data.num_classes={config.data.num_classes}: {config.data.root} holds {prepared} classes;"
            f" set data.num_classes={prepared} or name another data.root"
        )
    return prepared


def check_preparation(config: Config, manifest: dict[str, Any], typed: Collection[str]) -> None:
    """UserError where a key that only prepare.py obeys is among those `typed`, and the data were not prepared so.

    The validation split would be evaluated under data.splits.val=train, too, and the record would say otherwise.
    """
    data = config.data
    values = {f"splits.{key}": value for key, value in dataclasses.asdict(data.splits).items()}
    values |= {f"store.{key}": value for key, value in dataclasses.asdict(data.store).items()}
    values |= {"undecodable": data.undecodable, "check_md5": data.check_md5, "subset": data.subset}
    for name, value in values.items():
        prepared = manifest["options"].get(name)
        if f"data.{name}" in typed and value != prepared:
            was = "" if prepared is None else f", and {data.root} was prepared with data.{name}={prepared}"
            raise UserError(
                f"data.{name}={value}: only prepare.py obeys it{was}; leave it out, or name another data.root"
            )


def check_store(config: Config, manifest: dict[str, Any]) -> None:
    """UserError where the training split was not written as the configuration, and so the run's name, says, or has
    less than a batch."""
    for key, value in dataclasses.asdict(config.data.store).items():
        if (found := manifest["options"][f"store.{key}"]) != value:
            raise UserError(
                f"data.store.{key}={value}: {config.data.root} was prepared with {found};"
                f" set data.store.{key}={found}, or name another data.root"
            )
    batch, num_images = config.training.global_batch, manifest["splits"]["train"]["num_samples"]
    if num_images < batch:  # known before torch is imported; the data module counts again without the minival
        raise UserError(
            f"training.global_batch={batch}: there are only {num_images} images to train on;"
            f" choose a batch of at most {num_images}"
        )

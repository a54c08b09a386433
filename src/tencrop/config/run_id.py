"""Identifies the run that a configuration describes (learning keys, hash, folder), and checks prepared data against it.

Two configurations with the same name, learning hash and seed describe the same training, so they share one run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tencrop.config.documents import Document
from tencrop.config.schema import Augmentation, Config, Data, Model, Optimizer, Schedule, Training, UserError

# Keys that do not change what is trained; hardware may still change the last bits of the weights. The seed does change
# it, but is a part of the folder's name of its own.
NOT_LEARNED = {
    "seed", "hardware", "tracker", "name", "runs", "deterministic", "log_every_steps", "protocol",
    "checkpoint_every_steps", "allow_other_code", "checkpoint", "weights", "weights_by", "ema", "save_views", "output",
    "recipe", "plan",
}  # fmt: skip
# Keys of data. The loader counts only where it reads other pixels than beton (`learning_keys`).
NOT_LEARNED_DATA = {
    "root",
    "source",
    "loader",
    "splits",
    "undecodable",
    "num_classes",
    "check_md5",
    "subset",
    "subset_of_val",
    "stage",
    "keep_stage",
}

# Keys that were null in the first runs where unused, and so are part of their hashes. A key with a default that is not
# listed is newer: it enters the hash only where it is not at its default, so that older run folders keep their names.
NULL_IN_FIRST_RUNS = {"momentum", "nesterov", "betas", "eps", "milestones", "gamma", "min_lr", "patience", "max_drops"}


def learning_keys(config: Config) -> Document:
    """The fields of the configuration that affect training, without the seed."""
    values = dataclasses.asdict(config)
    values["data"] = {key: value for key, value in values["data"].items() if key not in NOT_LEARNED_DATA}
    values["data"]["store"]["mode"] = pixels_of_mode(config.data.store.mode)
    if _reads_other_pixels(config.data):
        values["data"]["loader"] = config.data.loader
    values["augmentation"] = _drop_disabled(config.augmentation)
    values["optimizer"] = _drop_newer(config.optimizer)
    values["schedule"] = _drop_newer(config.schedule)
    values["training"] = _drop_newer(config.training)
    values["model"] = _drop_newer(config.model)
    return {key: value for key, value in values.items() if key not in NOT_LEARNED}


def _reads_other_pixels(data: Data) -> bool:
    """Whether the loader gives other training pixels than data.loader=beton."""
    if data.loader == "ffcv":  # resizes with another filter
        return True
    # torch decodes and resizes the originals, which gives the stored pixels unless the store compresses them again.
    is_resized = data.store.short_side is not None or data.store.max_side is not None
    return data.loader == "torch" and is_resized and data.store.mode != "raw"


def pixels_of_mode(mode: str) -> str:
    """The value of data.store.mode that stores the same pixels and has the oldest name."""
    return "jpeg" if mode == "jpeg_indexed" else mode


def _drop_newer(section: Model | Optimizer | Schedule | Training) -> dict[str, Any]:
    """The keys of a section without those that are newer than the first runs and at their default."""
    values = dataclasses.asdict(section)
    for field in dataclasses.fields(section):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if field.name not in NULL_IN_FIRST_RUNS and vars(section)[field.name] == default:
            del values[field.name]
    return values


def _drop_disabled(config: Augmentation) -> dict[str, Any]:
    """The fields of `config` without the settings of transforms that are switched off, as they affect nothing.

    A section at its defaults is off: the hash of existing runs stays when a transform is added to the schema.
    """
    augmentation = dataclasses.asdict(config)
    sections = {field.name: field.default_factory for field in dataclasses.fields(config)}
    is_off = {
        name: dataclasses.asdict(default()) == augmentation[name]
        for name, default in sections.items()
        if default is not dataclasses.MISSING
    }
    # These are off at other values too, such as a fill color of erasing that is never used.
    is_off |= {
        "jitter": not any(augmentation["jitter"][key] for key in ("brightness", "contrast", "saturation", "hue")),
        "randaugment": augmentation["randaugment"]["num_ops"] == 0,
        "erasing": augmentation["erasing"]["prob"] == 0,
        "mixing": augmentation["mixing"]["mix_group"] is None,
        "repeats": augmentation["repeats"] == 1,
        "min_object_covered": augmentation["min_object_covered"] is None,
    }
    return {key: value for key, value in augmentation.items() if not is_off.get(key)}


def learning_hash(config: Config) -> str:
    """The first 8 hex digits of the SHA-256 of the learning keys."""
    canonical = json.dumps(learning_keys(config), sort_keys=True)
    # 32 bits: among 10,000 recipes of one name, the chance of any collision is 1%.
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_path(config: Config) -> Path:
    """The run's folder, runs/<experiment or model-data>/seed<k>-<hash>; does not create it."""
    name = config.name or f"{config.model.name}-{config.data.name}"
    # Characters that need no quotes in a shell and that every file system allows.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return Path(config.runs) / name / f"seed{config.seed}-{learning_hash(config)}"


def check_data(config: Config, manifest: Document) -> int:
    """Return the number of classes; raise UserError if the prepared data are not those of the configuration."""
    if manifest["name"] != config.data.name:  # run name, tables and claim would name the wrong data set
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


def check_preparation(config: Config, manifest: Document, typed: Collection[str]) -> None:
    """Raise UserError if the user typed a key that only prepare.py uses, with a value the data were not prepared with.

    Ignoring it would give a wrong record: evaluate.py data.splits.val=train would still evaluate the validation split.
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
                f"data.{name}={value}: only prepare.py uses it{was}; leave it out, or name another data.root"
            )


def check_store(config: Config, manifest: Document) -> None:
    """Raise UserError if the training split was stored with other options than configured, or has less than a batch.

    The store options are learning keys: the stored pixels affect training, and the hash must describe them.
    """
    for key, value in dataclasses.asdict(config.data.store).items():
        found = manifest["options"][f"store.{key}"]
        is_same = pixels_of_mode(found) == pixels_of_mode(value) if key == "mode" else found == value
        if not is_same:
            raise UserError(
                f"data.store.{key}={value}: {config.data.root} was prepared with {found};"
                f" set data.store.{key}={found}, or name another data.root"
            )
    batch, num_images = config.training.global_batch, manifest["splits"]["train"]["num_samples"]
    if num_images < batch:  # checked here before torch is imported; the data module checks again without the minival
        raise UserError(
            f"training.global_batch={batch}: there are only {num_images} images to train on;"
            f" choose a batch of at most {num_images}"
        )

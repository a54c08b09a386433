"""Which run a configuration means: its learning keys, their hash, its folder; and whether data fit it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tencrop.cli.command_line import PATHS, home, keys_typed, parse
from tencrop.config.documents import FILE_NAME, Between, literal, read_json, read_yaml
from tencrop.config.loader import CONFIG_FORMAT, in_present_terms
from tencrop.config.rules import validate
from tencrop.config.schema import Config, UserError
from tencrop.config.yaml_files import yaml_mapping

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


def check_preparation(config: Config, manifest: dict[str, Any], typed: Iterable[str]) -> None:
    """UserError where a key that prepare.py alone obeys is typed, as KEY=VALUE, and the data were not prepared so.

    The validation split would be evaluated under data.splits.val=train, too, and the record would say otherwise.
    """
    data = config.data
    values = {f"splits.{key}": value for key, value in dataclasses.asdict(data.splits).items()}
    values |= {f"store.{key}": value for key, value in dataclasses.asdict(data.store).items()}
    values |= {"undecodable": data.undecodable, "check_md5": data.check_md5, "subset": data.subset}
    keys = keys_typed(typed)
    for name, value in values.items():
        prepared = manifest["options"].get(name)
        if f"data.{name}" in keys and value != prepared:
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


# what evaluation may choose anew; all else is the run's own
EVALUATION_KEYS = (
    "protocol", "hardware", "tracker", "data", "normalization", "training.precision",
    "checkpoint", "ema", "save_views", "output", "deterministic",
)  # fmt: skip


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


def config_of_run(run_dir: Path, overrides: list[str], *, conf: Path) -> Config:
    """The configuration that `run_dir` was trained with, changed by what the user typed for evaluation.

    `overrides` are KEY=VALUE or GROUP=NAME; a group is read from `conf`, or from the folder that --config-dir names,
    and sees the run's image_size and short_side. Raises UserError for a key that would make it another network.
    """
    node = OmegaConf.create(literal(read_config(run_dir)))
    try:
        validate(node, Config)
    except UserError as error:
        problem = str(error)[:300]  # it quotes the value, which may be of any length
        raise UserError(f"{run_dir / 'config.yaml'}: not {CONFIG} ({problem}); {MEND}") from error
    changes = [(override.input_line, override.key_or_group, override.value()) for override in parse(overrides)]
    is_group = {key: (conf / key).is_dir() for _, key, _ in changes}
    for text, key, value in sorted(changes, key=lambda change: not is_group[change[1]]):  # groups first, as Hydra does
        if not any(key == name or key.startswith(f"{name}.") for name in EVALUATION_KEYS):
            raise UserError(f"{text}: the checkpoint's own run fixes it; leave it out")
        if is_group[key]:
            OmegaConf.update(node, key, yaml_mapping(_option(conf, key, value)), merge=False)
        else:
            OmegaConf.update(node, key, home(value) if key in PATHS else value, force_add=True)
    return validate(node, Config)


def _option(conf: Path, group: str, name: Any) -> Path:
    """The file of an option, the user's own first, as Hydra found it."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    own = [Path(source.path) for source in sources if source.provider == "command-line"]
    paths = [folder / group / f"{name}.yaml" for folder in (*own, conf)]
    return next((path for path in paths if path.exists()), paths[-1])

"""Whether a run supports the published error that its configuration claims.

A claim is made by a file of conf/experiment or conf/model, and is about that file's recipe on whole data. Called for
result.json by evaluate.py, and by report/collect.py.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training
from tencrop.config import Config, UserError, learning_keys, validate
from tencrop.config.documents import literal
from tencrop.config.yaml_files import read_yaml_file, yaml_files, yaml_text
from tencrop.data.sources import cifar10, digits, ilsvrc, tiny_imagenet
from tencrop.evaluation.protocols import default_side
from tencrop.evaluation.results import measured_otherwise

# images of the training and the evaluation split, and classes, of the data that a claim can be about
WHOLE_DATA = {
    "imagenet": (*ilsvrc.NUM_IMAGES.values(), 1000),
    "cifar10": (*(len(files) * cifar10.IMAGES_OF_A_BATCH for files in cifar10.BATCHES.values()), 10),
    "tiny_imagenet": (*tiny_imagenet.NUM_IMAGES.values(), 200),
    "digits": (digits.NUM_TRAIN, digits.NUM_DIGITS - digits.NUM_TRAIN, 10),
}


def claimant(config: Config, data: Mapping[str, Any]) -> Config | None:
    """The configuration of the file that makes the claim of `config`; None where `config` is no run of that file.

    Such a run learns by the same keys, is not cut short by max_steps (one of these keys), and has all images and
    classes of the data that the claim is about. data: the manifest of the prepared data, or what a run's says of it.
    """
    claim = config.claim
    if claim is None or claim.data != config.data.name or not is_whole(config.data.name, data):
        return None
    own = learning_keys(config)
    for group, name in _files_with(CONF, dataclasses.asdict(claim)):
        recipe = _composed(CONF, group, name)
        if recipe.claim == claim and learning_keys(recipe) == own:
            return recipe
    return None


def claimant_of_run(config: Mapping[str, Any], data: Mapping[str, Any]) -> Config | None:
    """`claimant` for what the config.yaml of a run folder holds; None where it is not of this version."""
    try:
        if not config["claim"] or not is_whole(config["data"]["name"], data):
            return None  # most runs; what follows takes 0.05 s
        return claimant(validate(OmegaConf.create(literal(dict(config))), Config), data)
    except (UserError, KeyError, TypeError):
        return None


def is_whole(name: str, data: Mapping[str, Any]) -> bool:
    """Whether these are all images and classes of the data of that name; False for data that nobody has counted."""
    try:
        found = tuple(data["splits"][split]["num_samples"] for split in ("train", "val"))
        return (*found, len(data["classes"])) == WHOLE_DATA.get(name)
    except (KeyError, TypeError):  # of another version
        return False


def is_claimed(result: Mapping[str, Any], recipe: Config) -> bool:
    """Whether a result.json is measured as the claim of `recipe` was: on as many images and classes, under its protocol
    in the recipe's own way (`is_default`), with the weights that the recipe ends with."""
    assert recipe.claim is not None
    is_last = result["selection"] == "last" and result.get("step") == result.get("total_steps")
    is_same = result["protocol"] == recipe.claim.protocol and is_on_whole(recipe.claim.data, result)
    return is_last and is_same and is_default(result, recipe)


def is_on_whole(name: str, result: Mapping[str, Any]) -> bool:
    """Whether a result.json counts all evaluation images and classes of the data of that name."""
    counted = (result["num_images"], result.get("num_classes"))
    return result["data"] == name and counted == WHOLE_DATA[name][1:]


def is_default(result: Mapping[str, Any], recipe: Config) -> bool:
    """Whether a result was measured at the recipe's own sizes, filter, region, average, precision and normalization, of
    the weights that it ends with; the protocol may be any."""
    protocol = recipe.protocol
    side = default_side(result["protocol"], recipe.short_side)
    if isinstance(protocol.side, list) and result["protocol"] == protocol.name:
        side = protocol.side  # several scales are the recipe's own
    own = {"side": side, "size": recipe.image_size, "region": protocol.region, "averaging": protocol.average}
    own |= {"filter": recipe.augmentation.filter, "weights": "raw" if recipe.training.ema_decay is None else "ema"}
    if result["views"] == 1:
        del own["averaging"]
    is_same = all(result[key] == value for key, value in own.items())
    return is_same and not measured_otherwise(result, dataclasses.asdict(recipe))


def _files_with(conf: Path, claim: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Group and name of the files that make a claim."""
    for group, name, made in _claims(conf):
        if all(key in claim and claim[key] == value for key, value in made.items()):
            yield group, name


@cache
def _claims(conf: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Group, name and claim of every file that makes one. A broken file makes none: all images may be scored by now,
    and who chooses that file is told."""
    found = []
    for path in (path for group in ("experiment", "model") for path in yaml_files(conf / group)):
        try:
            said = read_yaml_file(path) if "\nclaim:" in yaml_text(path) else None
        except (UserError, OSError) as error:
            print(f"warning: passed over for its claim: {error}", file=sys.stderr)
            continue
        if isinstance(said, dict) and isinstance(claim := said.get("claim"), dict):
            found.append((path.parent.name, path.stem, claim))
    return found


@cache
def _composed(conf: Path, group: str, name: str) -> Config:
    return compose_training([f"{group}={name}"], conf)

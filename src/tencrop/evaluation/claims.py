"""Decide whether a run may be compared with the published error that its configuration claims to reproduce.

A claim is a published error in a file of conf/experiment or conf/model. It applies to that file's recipe, unchanged, on
all images and classes of the dataset. Used for result.json and by the report.
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
from tencrop.evaluation.results import differences_from_training

# Dataset -> (training images, evaluation images, classes) of the complete dataset. Only these can have claims.
WHOLE_DATA = {
    "imagenet": (*ilsvrc.NUM_IMAGES.values(), 1000),
    "cifar10": (*(len(files) * cifar10.IMAGES_OF_A_BATCH for files in cifar10.BATCHES.values()), 10),
    "tiny_imagenet": (*tiny_imagenet.NUM_IMAGES.values(), 200),
    "digits": (digits.NUM_TRAIN, digits.NUM_DIGITS - digits.NUM_TRAIN, 10),
}


def claiming_recipe(config: Config, data: Mapping[str, Any]) -> Config | None:
    """The recipe whose claim `config` has; None if `config` is not a run of that recipe.

    A run of the recipe has the same learning keys (max_steps is one, so it is not cut short) and all images and classes
    of the claim's dataset. data: the manifest of the prepared data, or the "data" part of a run's manifest.
    """
    claim = config.claim
    if claim is None or claim.data != config.data.name or not is_whole(config.data.name, data):
        return None
    # A changed key changes what is learned but not `claim`, which the configuration inherits from the recipe's file: so
    # the file is composed again and compared.
    own = learning_keys(config)
    for group, name in _files_with_claim(CONF, dataclasses.asdict(claim)):
        recipe = _composed(CONF, group, name)
        if recipe.claim == claim and learning_keys(recipe) == own:
            return recipe
    return None


def claiming_recipe_of_run(config: Mapping[str, Any], data: Mapping[str, Any]) -> Config | None:
    """`claiming_recipe` for the content of a run's config.yaml; None if another version of the code wrote it."""
    try:
        if not config["claim"] or not is_whole(config["data"]["name"], data):
            return None  # most runs stop here; composing the recipe takes 0.05 s
        return claiming_recipe(validate(OmegaConf.create(literal(dict(config))), Config), data)
    except (UserError, KeyError, TypeError):
        return None


def is_whole(name: str, data: Mapping[str, Any]) -> bool:
    """Whether `data` has all images and classes of the dataset `name`; False for a dataset not in WHOLE_DATA."""
    try:
        found = tuple(data["splits"][split]["num_samples"] for split in ("train", "val"))
        return (*found, len(data["classes"])) == WHOLE_DATA.get(name)
    except (KeyError, TypeError):  # the manifest of another version
        return False


def is_claimed(result: Mapping[str, Any], recipe: Config) -> bool:
    """Whether a result.json was measured in the same way as the claim of `recipe`.

    That is: on as many images and classes, under the claim's protocol with the recipe's own settings (`is_default`),
    with the final weights of the training.
    """
    assert recipe.claim is not None
    # Neither best.ckpt, which was selected by its error, nor a checkpoint from the middle of a run.
    is_last = result["selection"] == "last" and result.get("step") == result.get("total_steps")
    is_same = result["protocol"] == recipe.claim.protocol and is_on_whole(recipe.claim.data, result)
    return is_last and is_same and is_default(result, recipe)


def is_on_whole(name: str, result: Mapping[str, Any]) -> bool:
    """Whether a result.json covers all evaluation images and classes of the dataset `name`."""
    counted = (result["num_images"], result.get("num_classes"))
    return result["data"] == name and counted == WHOLE_DATA[name][1:]


def is_default(result: Mapping[str, Any], recipe: Config) -> bool:
    """Whether a result has the recipe's own settings under any protocol.

    The settings are sizes, resize, filter, region, averaging, precision, normalization, and EMA weights if the recipe
    has EMA.
    """
    protocol = recipe.protocol
    side = default_side(result["protocol"], recipe.short_side)
    if isinstance(protocol.side, list) and result["protocol"] == protocol.name:
        side = protocol.side  # a recipe tested at several scales, as VGG
    own = {"side": side, "size": recipe.image_size, "region": protocol.region, "averaging": protocol.average}
    own |= {"filter": recipe.augmentation.filter, "weights": "raw" if recipe.training.ema_decay is None else "ema"}
    if result["views"] == 1:
        del own["averaging"]  # one view: nothing is averaged
    if result.get("resize", "shorter_side") != protocol.resize:  # results of earlier code have no "resize"
        return False
    is_same = all(result[key] == value for key, value in own.items())
    return is_same and not differences_from_training(result, dataclasses.asdict(recipe))


def _files_with_claim(conf: Path, claim: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Group and name of the configuration files that make this claim."""
    for group, name, made in _claims(conf):
        if all(key in claim and claim[key] == value for key, value in made.items()):
            yield group, name


@cache
def _claims(conf: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Group, name and claim of every configuration file that makes one.

    A broken file is skipped with a warning. All images may have been scored by now, and a typo in an unrelated
    file must not lose them; whoever selects that file gets the error.
    """
    found = []
    for path in (path for group in ("experiment", "model") for path in yaml_files(conf / group)):
        try:
            # Parsing all files takes longer than searching their text, and few of them have a claim.
            content = read_yaml_file(path) if "\nclaim:" in yaml_text(path) else None
        except (UserError, OSError) as error:
            print(f"warning: ignored while looking for claims: {error}", file=sys.stderr)
            continue
        if isinstance(content, dict) and isinstance(claim := content.get("claim"), dict):
            found.append((path.parent.name, path.stem, claim))
    return found


@cache
def _composed(conf: Path, group: str, name: str) -> Config:
    return compose_training([f"{group}={name}"], conf)

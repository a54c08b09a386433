"""Validates a composed configuration: what schema.py declares for each key, and the rules between keys.

An invalid value is refused with a sentence that tells how to fix it. Nothing is corrected silently, since a run that
trains with another value than the one typed is worse than one that does not start.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

from tencrop.config.build import build
from tencrop.config.command_schemas import ComplexityConfig, EvaluateConfig
from tencrop.config.fields import dotted_keys
from tencrop.config.protocol_rules import check_mean_image, check_protocol
from tencrop.config.recipe_rules import check_recipe
from tencrop.config.recipes import check_guesses
from tencrop.config.schema import Config, UserError
from tencrop.config.tracker import REMOVED, USE_INSTEAD

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schema = TypeVar("Schema", bound="DataclassInstance")

# All valid model names, written by python -m tencrop.models.names. Asking timm would import torch, which takes seconds.
MODEL_NAMES = Path(__file__).with_name("model_names.txt")


# Characters of a run's name. File systems allow 255 bytes, and wandb's name of a run adds seed and hash.
MAX_NAME = 200


def validate(node: DictConfig, schema: type[Schema]) -> Schema:
    """Convert the composed YAML to an instance of `schema` and check all rules.

    Raises UserError for an unknown key, a missing one, a value that its field does not allow, or a violated rule.
    """
    try:
        values = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_interpolation_sentence(error)) from error
    # OmegaConf is needed for interpolations only. What follows sees plain values: building 138 keys takes 1.4 ms.
    assert isinstance(values, dict)
    tracker = values.get("tracker")
    if isinstance(tracker, dict) and tracker.get("name") == REMOVED:
        raise UserError(f"tracker.name={REMOVED}: {USE_INSTEAD}")
    config = build(schema, values)
    if isinstance(config, Config | ComplexityConfig) and config.model is not None:
        _check_model(config.model.name)
    if isinstance(config, Config):
        check_recipe(config)
        check_guesses(config, dotted_keys(Config))
        if (teacher := config.training.distill.model) is not None:
            _check_model(teacher, key="training.distill.model")
        _check_run(config)
    return config


def _interpolation_sentence(error: OmegaConfBaseException) -> str:
    key, text = error.full_key or error.key or "", str(error).splitlines()[0]
    if isinstance(error, InterpolationToMissingValueError):
        missing = text.rpartition(" ")[2]
        return f"{missing}: needs a value; give {missing}=..."
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {text}; correct the name in ${{...}}, or type \\${{...}} to mean these characters"
    return f"{key}: {text}"


def _check_model(name: str, *, key: str = "model.name") -> None:
    names = MODEL_NAMES.read_text().split()
    if name not in names:
        # 5 ms for all 1,509 names, and only after a mistake.
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else "model.name=? lists the names"
        raise UserError(f"{key}={name}: there is no such model; {hint}")


def _check_run(config: Config) -> None:
    # With a checkpoint, the sizes come from its own run: evaluation_targets checks the protocol after reading that.
    if config.checkpoint is None and config.weights is None:
        check_protocol(config.protocol)
        check_mean_image(config.protocol, config.normalization)
    # short_side=null keeps the stored size. Then fit.py and evaluation/checks.py compare the images themselves.
    if config.short_side is not None and config.short_side < config.image_size:
        raise UserError(
            f"short_side={config.short_side}: a crop of image_size={config.image_size} pixels does not fit; raise it"
        )
    # A name of dots alone would be runs/. or runs/.., and the run would lie beside or above all others.
    if config.name is not None and (config.name.strip(".") == "" or len(config.name) > MAX_NAME):
        raise UserError(
            f"name={config.name}: cannot name a folder in runs={config.runs}; use at least one letter or digit and at"
            f" most {MAX_NAME} characters"
        )
    if config.plan and isinstance(config, EvaluateConfig):
        raise UserError("plan=true: only train.py plans a training; leave it out")
    # Path("") is the current folder, which nobody means.
    if not config.runs:
        raise UserError("runs=: is empty; leave it out, or give runs=DIR")
    if config.checkpoint is not None and config.weights is not None:
        raise UserError("checkpoint and weights: give one of the two")
    _check_weights_by(config)


def _check_weights_by(config: Config) -> None:
    if config.weights_by == "order" and config.weights is None:
        raise UserError("weights_by=order: is for weights of another library; give weights=FILE, or leave it out")
    # Matching by order is checked by shapes alone, so sorted names could match the wrong layers of equal shape.
    if config.weights_by == "order" and Path(config.weights or "").suffix == ".safetensors":
        raise UserError(
            f"weights_by=order: {config.weights} has its tensors sorted by name, as every .safetensors file, and not in"
            " the order of the network; give the .pth file that it was made from"
        )

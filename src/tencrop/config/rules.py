"""Validates a composed configuration: types, choices, ranges, and rules between keys.

An invalid value is refused with a sentence that tells how to fix it. Nothing is corrected silently, since a run that
trains with another value than the one typed is worse than one that does not start.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException, ValidationError

from tencrop.config.command_schemas import ComplexityConfig
from tencrop.config.documents import literal
from tencrop.config.protocol_rules import check_protocol
from tencrop.config.recipe_rules import MAX_SIDE, check_recipe
from tencrop.config.recipes import check_guesses
from tencrop.config.schema import Config, UserError
from tencrop.config.tracker import REMOVED, USE_INSTEAD

Schema = TypeVar("Schema")

# All valid model names, written by python -m tencrop.models.names. Asking timm would import torch, which takes seconds.
MODEL_NAMES = Path(__file__).with_name("model_names.txt")


def validate(node: DictConfig, schema: type[Schema]) -> Schema:
    """Convert the composed YAML to an instance of `schema` and check all rules.

    Raises UserError for an unknown key, a missing one, a value of the wrong type or a violated rule.
    """
    try:
        values = OmegaConf.to_container(node, resolve=True)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), literal(values)))
    except OmegaConfBaseException as error:
        raise UserError(_sentence(error, schema)) from error
    check(config)
    return config  # type: ignore[return-value]


def dotted_keys(schema: Any) -> list[str]:
    """All dotted keys of a nested dataclass, such as augmentation.pca.std."""
    return list(key_types(schema))


def key_types(schema: Any, prefix: str = "") -> dict[str, Any]:
    """All dotted keys of a nested dataclass, with their declared types."""
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        inner = next((kind for kind in (kind, *get_args(kind)) if dataclasses.is_dataclass(kind)), None)
        kinds |= key_types(inner, f"{prefix}{name}.") if inner else {prefix + name: kind}
    return kinds


def _sentence(error: OmegaConfBaseException, schema: type) -> str:
    # OmegaConf has few exception types, so some cases can only be told apart by their text. Tests pin our sentences: a
    # release of OmegaConf that rewords its own makes them fail.
    key = error.full_key or error.key or ""
    text = str(error).splitlines()[0]
    if "not in '" in text or "is not in struct" in text:
        close = difflib.get_close_matches(str(key), dotted_keys(schema), n=2, cutoff=0.5)
        return f"{key}: there is no such key" + (f"; did you mean {' or '.join(close)}?" if close else "")
    if "missing mandatory value" in text.lower():
        return f"{key}: needs a value; give {key}=..."
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {text}; correct the name in ${{...}}, or type \\${{...}} to mean these characters"
    kinds = key_types(schema)
    value = OmegaConf.to_container(error.value) if OmegaConf.is_config(error.value) else error.value
    inner = [name for name in kinds if name.startswith(f"{key}.")]
    if inner:
        return f"{key}={_as_typed(value)}: holds several keys; give one of them a value: {', '.join(inner[:3])}, ..."
    if isinstance(error, ValidationError) and key in kinds:
        return f"{key}={_as_typed(value)}: must be {_type_in_words(kinds[key])}"
    return f"{key}: {text}"


def _as_typed(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _type_in_words(kind: Any) -> str:
    """A declared type, described for a user: "a whole number" rather than "int"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if get_origin(kind) is list:
        return "a list, [A,B]"
    if get_origin(kind) is dict:
        return "a mapping, {A: 1, B: 2}"
    return names.get(kind) or " or ".join(_type_in_words(one) for one in get_args(kind))


# Characters of a run's name. File systems allow 255 bytes, and wandb's name of a run adds seed and hash.
MAX_NAME = 200
FILTERS = ("bilinear", "bicubic", "box", "nearest")
CHOICES: dict[str, tuple[str, ...]] = {
    "data.loader": ("beton", "ffcv", "torch"),
    "data.undecodable": ("stop", "skip"),
    "data.store.mode": ("jpeg", "raw", "proportion"),
    "augmentation.crop": ("random_resized", "random_sized", "random", "none"),
    "augmentation.region": ("whole", "square"),
    "augmentation.filter": FILTERS,
    "augmentation.jitter.source": ("torch", "torchvision"),
    "augmentation.randaugment.source": ("torchvision", "timm"),
    "augmentation.randaugment.filter": ("nearest", "bilinear", "bicubic"),
    "augmentation.erasing.fill": ("normal", "mean"),
    "augmentation.pca.source": ("dataset", "torch", "cuda_convnet"),
    "optimizer.name": ("sgd", "sgd_alexnet", "adamw"),
    "optimizer.decay": ("all", "weights"),
    "schedule.name": ("step", "cosine", "plateau", "constant"),
    "protocol.name": ("center", "five_crop", "ten_crop", "flip_pair", "grid_crop", "crops_144", "dense"),
    "protocol.region": ("whole", "square"),
    "protocol.resize": ("shorter_side", "warp", "central_fraction"),
    "protocol.filter": FILTERS,
    "protocol.average": ("softmax", "logits"),
    "hardware.accelerator": ("auto", "cpu", "gpu"),
    "figure": ("all", "architecture", "tradeoff", "receptive_field", "retrieval", "occlusion", "attention", "patches"),
    "tracker.name": ("wandb", "tensorboard", "none"),
    "training.precision": ("fp32", "tf32", "bf16"),
    "format": ("terminal", "markdown", "csv", "json"),
    "layers": ("main", "all"),
}
POSITIVE = (
    "image_size", "training.epochs", "training.max_steps", "training.global_batch", "training.evaluate_every_epochs",
    "training.clip_grad_norm", "model.bn_group", "augmentation.size", "protocol.size", "short_side",
    "optimizer.lr", "hardware.devices", "hardware.nodes", "hardware.max_micro_batch", "log_every_steps",
    "checkpoint_every_steps", "data.store.short_side", "data.store.max_side", "schedule.patience", "schedule.gamma",
    "data.num_classes", "num_classes", "augmentation.mixing.mix_group", "augmentation.repeats", "candidates",
)  # fmt: skip
FRACTIONS = (
    "data.store.jpeg_fraction",
    "augmentation.flip", "training.label_smoothing", "training.minival_fraction", "training.ema_decay",
    "augmentation.jitter.brightness", "augmentation.jitter.contrast", "augmentation.jitter.saturation",
    "augmentation.mixing.prob", "augmentation.mixing.switch_prob", "augmentation.randaugment.prob",
    "augmentation.erasing.prob",
)  # fmt: skip
NON_NEGATIVE = (
    "optimizer.weight_decay", "optimizer.momentum", "optimizer.eps", "schedule.warmup_epochs", "schedule.min_lr",
    "schedule.max_drops", "augmentation.pca.std", "augmentation.mixing.mixup_alpha", "augmentation.mixing.cutmix_alpha",
    "augmentation.randaugment.num_ops", "augmentation.randaugment.magnitude", "augmentation.randaugment.std",
)  # fmt: skip
AT_MOST = {
    **dict.fromkeys(("image_size", "short_side", "augmentation.size", "protocol.size"), MAX_SIDE),
    **dict.fromkeys(("data.store.short_side", "data.store.max_side"), MAX_SIDE),
    **dict.fromkeys(("hardware.devices", "hardware.nodes"), 10_000),
    "augmentation.randaugment.num_ops": 100,
    "augmentation.repeats": 1000,
    "training.epochs": 1_000_000,
    "training.global_batch": 1 << 30,
}
NUMBERS = (
    "augmentation.area", "augmentation.aspect", "augmentation.side", "augmentation.erasing.area",
    "augmentation.erasing.aspect", "optimizer.betas", "schedule.milestones", "images",
)  # fmt: skip
# For each choice of a key, the keys beside it that this choice requires. Those of the other choices must be null: a
# setting that has no effect would still be recorded with the run, and enter its learning hash.
VARIANTS = {
    "data.store.mode": {"jpeg": set(), "raw": set(), "proportion": {"jpeg_fraction"}},
    "optimizer.name": {
        "sgd": {"momentum", "nesterov"},
        "sgd_alexnet": {"momentum"},
        "adamw": {"betas", "eps"},
    },
    "schedule.name": {
        "step": {"milestones", "gamma"},
        "cosine": {"min_lr"},
        "plateau": {"gamma", "patience", "max_drops"},
        "constant": set(),
    },
    "augmentation.crop": {
        "random_resized": {"area", "aspect"},
        "random_sized": {"area", "aspect"},
        "random": {"side", "region"},
        "none": set(),
    },
}


def check(config: Any) -> None:
    """Raise UserError for the first rule that `config`, of any command, violates."""
    values = _flat(dataclasses.asdict(config))
    for key, allowed in CHOICES.items():
        if key in values and (value := values[key]) not in allowed:
            if (key, value) == ("tracker.name", REMOVED):
                raise UserError(f"{key}={value}: {USE_INSTEAD}")
            close = difflib.get_close_matches(str(value), allowed, n=1)
            raise UserError(f"{key}={value}: must be {close[0] if close else 'one of ' + ', '.join(allowed)}")
    for key in POSITIVE:
        if key in values and not 0 < (value := values[key]) < math.inf:
            raise UserError(f"{key}={value}: must be {'above 0' if value <= 0 else 'a finite number'}")
    for key in NON_NEGATIVE:
        if key in values and not 0 <= (value := values[key]) < math.inf:
            raise UserError(f"{key}={value}: must be {'0 or above' if value < 0 else 'a finite number'}")
    for key in FRACTIONS:
        if key in values and not 0 <= (value := values[key]) <= 1:
            raise UserError(f"{key}={value}: must be in [0, 1]")
    for key, most in AT_MOST.items():
        if key in values and values[key] > most:
            raise UserError(f"{key}={values[key]}: must be at most {most:,}")
    for key in NUMBERS:  # OmegaConf accepts null and mappings inside a list of numbers
        if not all(isinstance(part, int | float) for part in values.get(key, [])):
            raise UserError(f"{key}={values[key]}: must be a list of numbers")
    for key, variants in VARIANTS.items():
        if key in values:
            _check_variant(values, key, variants)
    for key in ("hardware.workers", "workers"):
        workers = values.get(key, "auto")
        if workers != "auto" and (isinstance(workers, bool) or not isinstance(workers, int) or workers <= 0):
            raise UserError(f"{key}={workers}: must be auto or a number above 0")
    if not 1 <= (quality := values.get("data.store.quality", 95)) <= 100:
        raise UserError(f"data.store.quality={quality}: must be from 1 to 100, as in libjpeg")
    if isinstance(config, Config | ComplexityConfig) and config.model is not None:
        _check_model(config.model.name)
    if isinstance(config, Config):
        check_recipe(config)
        check_guesses(config, dotted_keys(Config))
        _check_run(config)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings flattened to dotted keys, without null values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def _check_variant(values: dict[str, Any], key: str, variants: dict[str, set[str]]) -> None:
    group, choice = key.rpartition(".")[0], values[key]
    for name in sorted(set().union(*variants.values())):
        value = values.get(f"{group}.{name}")
        if name in variants[choice] and value is None:
            raise UserError(f"{group}.{name}: {key}={choice} needs a value for it; give {group}.{name}=VALUE")
        if name not in variants[choice] and value is not None:
            raise UserError(f"{group}.{name}={value}: {key}={choice} does not use it; set {group}.{name}=null")


def _check_model(name: str) -> None:
    names = MODEL_NAMES.read_text().split()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else "model.name=? lists the names"
        raise UserError(f"model.name={name}: there is no such model; {hint}")


def _check_run(config: Config) -> None:
    # With a checkpoint, the sizes come from its own run: evaluation_targets checks the protocol after reading that.
    if config.checkpoint is None and config.weights is None:
        check_protocol(config.protocol)
    if config.short_side is not None and config.short_side < config.image_size:
        raise UserError(
            f"short_side={config.short_side}: a crop of image_size={config.image_size} pixels does not fit; raise it"
        )
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed}: must be a number from 0 to 2**63 - 1")
    for key, value in (("mean", config.normalization.mean), ("std", config.normalization.std)):
        numbers = value if isinstance(value, list) and all(isinstance(part, int | float) for part in value) else []
        if value not in ("imagenet", "dataset") and len(numbers) != 3:
            raise UserError(f"normalization.{key}={value}: must be imagenet, dataset or three numbers on [0, 255]")
        if key == "std" and any(number <= 0 for number in numbers):
            raise UserError(f"normalization.std={value}: every number must be above 0")
    if config.name is not None and (config.name.strip(".") == "" or len(config.name) > MAX_NAME):
        raise UserError(
            f"name={config.name}: cannot name a folder in runs={config.runs}; use at least one letter or digit and at"
            f" most {MAX_NAME} characters"
        )
    if not config.runs:
        raise UserError("runs=: is empty; leave it out, or give runs=DIR")
    if config.checkpoint is not None and config.weights is not None:
        raise UserError("checkpoint and weights: give one of the two")

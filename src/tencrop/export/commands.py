"""The evaluate command with which an exported file gives the run's error again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from tencrop.cli.choices import CONF
from tencrop.cli.command_line import command_prefix, for_shell, typed_word
from tencrop.config import Config, Model
from tencrop.config.yaml_files import read_yaml_file
from tencrop.export.source import FILES

PROTOCOL_KEYS = ("side", "size", "region", "resize", "filter", "average")


def evaluate_command(config: Config, result: Mapping[str, Any] | None, preprocessing: Mapping[str, Any]) -> str:
    """`python evaluate.py weights=...` for a result of the run, or for the run's own protocol if `result` is None."""
    overrides = [
        typed_word("weights", FILES["safetensors"]),
        *model_overrides(config.model),
        f"data={config.data.name}",
    ]
    # A placeholder: the path on this machine would be of no use to a reader of the card, and tell its user's name.
    overrides.append("data.root=PREPARED")
    # conf/data/imagenet.yaml has 1000, with which evaluate.py would refuse a subset of 100 classes.
    if config.data.num_classes != read_yaml_file(CONF / "data" / f"{config.data.name}.yaml")["num_classes"]:
        overrides.append(f"data.num_classes={config.data.num_classes}")
    overrides += _protocol_overrides(config, result, preprocessing)
    precision = result["precision"] if result else config.training.precision
    # float32 is what evaluate.py takes for plain weights, whatever the recipe's precision is.
    overrides += [f"training.precision={precision}"] if precision != "fp32" else []
    overrides += ["data.loader=ffcv"] if result and result.get("loader") == "ffcv" else []
    return " ".join([command_prefix("evaluate"), *overrides])


def model_overrides(model: Model) -> list[str]:
    """The overrides that choose the network: its name and arguments, whatever conf/model says of it."""
    arguments = [for_shell(f"+model.kwargs.{key}={json.dumps(value)}") for key, value in model.kwargs.items()]
    switches = [f"model.{key}=true" for key in ("channels_last", "blur_pool") if vars(model)[key]]
    switches += [] if model.bn_eps is None else [f"model.bn_eps={model.bn_eps}"]
    # Not model=NAME: conf/model/NAME.yaml may have other arguments in the version of tencrop that reads this card.
    return ["model=timm", f"model.name={model.name}", *arguments, *switches]


def _protocol_overrides(
    config: Config, result: Mapping[str, Any] | None, preprocessing: Mapping[str, Any]
) -> list[str]:
    """protocol=NAME, and its keys that differ from conf/protocol/NAME.yaml with the file's own preprocessing."""
    own = dataclasses.asdict(config.protocol)
    # result.json names two of these keys differently; size, side and filter of a result win over those of the run.
    used = own if result is None else {**own, **result, "name": result["protocol"], "average": result["averaging"]}
    # The file in conf/protocol refers to the recipe's sizes. For a file of weights, evaluate.py fills them from the
    # preprocessing in its metadata.
    filled = {
        "${short_side}": preprocessing["side"],
        "${image_size}": preprocessing["size"],
        "${augmentation.filter}": preprocessing["filter"],
    }
    stated = read_yaml_file(CONF / "protocol" / f"{used['name']}.yaml")
    overrides = [f"protocol={used['name']}"]
    for key in PROTOCOL_KEYS:
        default = filled.get(str(stated[key]), stated[key])
        # Only what differs: a command with all six keys would hide that this is, in most cases, the plain protocol.
        if used[key] != default:
            overrides.append(for_shell(f"protocol.{key}={_word(used[key])}"))
    return overrides


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return "null" if value is None else str(value)

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
    words = [typed_word("weights", FILES["safetensors"]), *model_words(config.model), f"data={config.data.name}"]
    words.append("data.root=PREPARED")
    if config.data.num_classes != read_yaml_file(CONF / "data" / f"{config.data.name}.yaml")["num_classes"]:
        words.append(f"data.num_classes={config.data.num_classes}")
    words += _protocol_words(config, result, preprocessing)
    precision = result["precision"] if result else config.training.precision
    words += [f"training.precision={precision}"] if precision != "fp32" else []
    words += ["data.loader=ffcv"] if result and result.get("loader") == "ffcv" else []
    return " ".join([command_prefix("evaluate"), *words])


def model_words(model: Model) -> list[str]:
    """The words that choose the network: its name and arguments, whatever conf/model says of it."""
    arguments = [for_shell(f"+model.kwargs.{key}={json.dumps(value)}") for key, value in model.kwargs.items()]
    switches = [f"model.{key}=true" for key in ("channels_last", "blur_pool") if vars(model)[key]]
    return ["model=timm", f"model.name={model.name}", *arguments, *switches]


def _protocol_words(config: Config, result: Mapping[str, Any] | None, preprocessing: Mapping[str, Any]) -> list[str]:
    """protocol=NAME, and its keys that differ from conf/protocol/NAME.yaml with the file's own preprocessing."""
    own = dataclasses.asdict(config.protocol)
    used = own if result is None else {**own, **result, "name": result["protocol"], "average": result["averaging"]}
    filled = {
        "${short_side}": preprocessing["side"],
        "${image_size}": preprocessing["size"],
        "${augmentation.filter}": preprocessing["filter"],
    }
    stated = read_yaml_file(CONF / "protocol" / f"{used['name']}.yaml")
    words = [f"protocol={used['name']}"]
    for key in PROTOCOL_KEYS:
        default = filled.get(str(stated[key]), stated[key])
        if used[key] != default:
            words.append(for_shell(f"protocol.{key}={_word(used[key])}"))
    return words


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return "null" if value is None else str(value)

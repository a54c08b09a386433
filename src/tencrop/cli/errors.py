"""Turns errors of Hydra and OmegaConf about unknown keys and options into one sentence with the nearest names."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from tencrop.cli.choices import groups, options_of
from tencrop.cli.command_line import instead_of_sweep
from tencrop.config.fields import dotted_keys
from tencrop.config.schema import Config
from tencrop.config.tracker import REMOVED, USE_INSTEAD

# Names that other training programs use for our keys. Edit distance does not find these.
FAMILIAR = {
    "batch_size": "training.global_batch",
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "gpus": "hardware.devices",
    "num_gpus": "hardware.devices",
    "num_workers": "hardware.workers",
    "amp": "training.precision",
    "mixup": "augmentation.mixing.mixup_alpha",
    "cutmix": "augmentation.mixing.cutmix_alpha",
    "smoothing": "training.label_smoothing",
    "img_size": "image_size",
    "arch": "model",
    "dataset": "data",
    "data_dir": "data.root",
}


def hydra_error_sentence(error: Exception, schema: type) -> str:
    """One sentence with the key, the value and the nearest names; `schema` is that of the command."""
    # Hydra raises one exception type for all of these, so they are told apart by their text. Hydra is pinned below 1.4,
    # and tests provoke every case.
    text = str(error)
    if found := re.search(r"Could not find '([^']+)'", text):
        return _no_option(found[1])
    if found := re.search(r"Multiple values for (\S+)\. .* '(?:override )?\S+: (.*)'", text):
        return f"{found[1]}: already has a value; leave the plus sign out: {found[1]}={found[2]}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        if addition := re.search(r"use (\+model\.kwargs\..+)", text):
            return f"{key}: a new entry of model.kwargs needs a plus sign: {addition[1]}"
        parent = re.search(r"full_key: (\S+)", str(error.__cause__ or ""))
        return _no_key(key, parent[1] if parent else key, schema)
    if found := re.search(r"Ambiguous value for argument '(.+?)'\s+1\. To use", text, re.DOTALL):
        return f"{found[1]}: several values are a sweep, which needs -m; {instead_of_sweep(found[1])}"
    first, *others = text.splitlines()
    if others and others[0].startswith("Check that the config directory"):  # only this line names the folder
        return f"{first} {others[0]}"
    return first + "".join(f" ({key})" for key in re.findall(r"full_key: (\S+)", text)[:1])


def nearest(name: str, names: list[str]) -> str:
    """A clause with the nearest of `names`, or with all of them if none is near and they are few."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(names)}" if len(names) < 30 else ""


def _no_option(option_path: str) -> str:
    """The sentence for an unknown option; `option_path` is GROUP/OPTION, and the option may be a path."""
    group, _, option = option_path.partition("/")
    if group == "hydra":
        group, _, option = option_path.rpartition("/")
        return f"{group}={option}: Hydra has no option of this name; install the plugin that provides it"
    if group not in groups():
        return f"{option_path}: there is no conf/{option_path}.yaml"
    names = options_of(group)
    if (group, option) == ("tracker", REMOVED):
        return f"{group}={option}: {USE_INSTEAD}"
    if "/" in option or Path(option).suffix == ".yaml":
        stem = Path(option).stem
        remedy = f"type {group}={stem}" if stem in names else f"{group}=? lists the options"
        if group == "data":
            remedy += ", and give the folder as data.root= (prepared) or data.source= (images or archives)"
        return f"{group}={option}: {group} is a name, not a file or folder; {remedy}"
    near = nearest(option, names) or f"; {group}=? lists the options"
    hint = "; for any timm model type model=timm model.name=NAME" if group == "model" else ""
    return f"{group}={option}: there is no conf/{group}/{option}.yaml{near}{hint}"


def _no_key(typed: str, missing: str, schema: type) -> str:
    """The sentence for an unknown key; `missing` is the shortest prefix of `typed` that does not exist."""
    known, every = dotted_keys(schema), dotted_keys(Config)
    if missing.startswith("model.kwargs."):  # typed as model.kwargs={a: 1}; Hydra accepts new entries only with +
        return f"{missing}: a new entry of model.kwargs needs a plus sign: +{missing}=VALUE"
    if typed in every or missing in known or any(key.startswith(f"{typed}.") for key in every):
        return f"{typed}: neither this command nor the chosen groups use it; --help shows the keys"
    if typed.startswith("hydra."):
        return f"{typed}: Hydra has no such key; --cfg hydra lists its keys"
    last = typed.rpartition(".")[2]  # optimizer.learning_rate is familiar as learning_rate
    familiar = FAMILIAR.get(last, "")
    # A familiar name first, then the same last part (momentum for optimizer.momentum), then the nearest spelling.
    same = [familiar] if familiar in (*known, *groups()) else [key for key in known if key.rpartition(".")[2] == last]
    near = f"; did you mean {' or '.join(same[:3])}?" if same else nearest(missing, known)
    return f"{missing}: there is no such key{near or '; --help shows the keys'}"

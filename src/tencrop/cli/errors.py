"""One sentence for a key or an option that is not there, of Hydra's and OmegaConf's errors. Called by verbs.py."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from tencrop.cli.choices import groups, options_of
from tencrop.cli.command_line import several
from tencrop.config.rules import keys_of
from tencrop.config.schema import Config

# what other programs call it
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


def sentence(error: Exception, schema: type) -> str:
    """The key, the value and the nearest names; `schema` is of the verb."""
    text = str(error)
    if found := re.search(r"Could not find '([^']+)'", text):
        return _no_option(found[1])
    if found := re.search(r"Multiple values for (\S+)\. .* '(?:override )?\S+: (.*)'", text):
        return f"{found[1]}: has a value already; leave the plus sign out: {found[1]}={found[2]}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        if addition := re.search(r"use (\+model\.kwargs\..+)", text):
            return f"{key}: a new entry of model.kwargs needs a plus sign: {addition[1]}"
        parent = re.search(r"full_key: (\S+)", str(error.__cause__ or ""))
        return _no_key(key, parent[1] if parent else key, schema)
    if found := re.search(r"Ambiguous value for argument '(.+?)'\s+1\. To use", text, re.DOTALL):
        return f"{found[1]}: several values are a sweep, which needs -m; {several(found[1])}"
    first, *others = text.splitlines()
    if others and others[0].startswith("Check that the config directory"):  # which Hydra names in this line only
        return f"{first} {others[0]}"
    return first + "".join(f" ({key})" for key in re.findall(r"full_key: (\S+)", text)[:1])


def nearest(name: str, names: list[str]) -> str:
    """The nearest of `names` as a clause of a sentence, empty where none is near."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(names)}" if len(names) < 30 else ""


def _no_option(place: str) -> str:
    """`place` is GROUP/OPTION; what was typed as an option may be a path."""
    group, _, option = place.partition("/")
    if group == "hydra":
        group, _, option = place.rpartition("/")
        return f"{group}={option}: Hydra has none of this name; is the plugin installed that brings it?"
    if group not in groups():
        return f"{place}: there is no conf/{place}.yaml"
    names = options_of(group)
    if "/" in option or Path(option).suffix == ".yaml":
        stem = Path(option).stem
        mend = f"type {group}={stem}" if stem in names else f"{group}=? lists what there is"
        if group == "data":
            mend += ", and the folder is data.root= (prepared) or data.source= (images or archives)"
        return f"{group}={option}: {group} is a name, not a file or folder; {mend}"
    near = nearest(option, names) or f"; {group}=? lists what there is"
    hint = "; any timm model is model=timm model.name=NAME" if group == "model" else ""
    return f"{group}={option}: there is no conf/{group}/{option}.yaml{near}{hint}"


def _no_key(typed: str, missing: str, schema: type) -> str:
    """`missing` is the part of the key that was typed at which it ends."""
    known, every = keys_of(schema), keys_of(Config)
    if missing.startswith("model.kwargs."):  # typed as a mapping
        return f"{missing}: a new entry of model.kwargs needs a plus sign: +{missing}=VALUE"
    if typed in every or missing in known or any(key.startswith(f"{typed}.") for key in every):
        return f"{typed}: neither this command nor the groups chosen use it; --help shows the keys"
    if typed.startswith("hydra."):
        return f"{typed}: Hydra has no such key; --cfg hydra shows those that it has"
    last = typed.rpartition(".")[2]
    familiar = FAMILIAR.get(last, "")
    same = [familiar] if familiar in (*known, *groups()) else [key for key in known if key.rpartition(".")[2] == last]
    near = f"; did you mean {' or '.join(same[:3])}?" if same else nearest(missing, known)
    return f"{missing}: there is no such key{near or '; --help shows the keys'}"

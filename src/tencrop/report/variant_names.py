"""Names the variants of an experiment by the settings in which they differ, for tables and legends; used by collect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tencrop.config.run_id import NOT_LEARNED, NOT_LEARNED_DATA
from tencrop.report.run_diff import flat_settings

MAX_SETTINGS = 3  # runs of other versions may differ in dozens


def variant_names(name: str, configs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """A name for each learning hash in `configs`, the contents of one config.yaml each.

    A single variant has the experiment's name. Otherwise each has its hash, and the settings that more than half of the
    variants do not share: "alexnet (9f8e7d6c, model.kwargs.lrn=false)". In an ablation, all but the base have one.
    """
    if len(configs) == 1:
        return dict.fromkeys(configs, name)
    settings = {key: _learned(config) for key, config in configs.items()}
    counts = Counter(setting for one in settings.values() for setting in one.items())
    names = {}
    for learning_hash, one in settings.items():
        own = [f"{key}={value}" for key, value in one.items() if 2 * counts[key, value] <= len(configs)]
        more = [f"{len(own) - MAX_SETTINGS} more"] if len(own) > MAX_SETTINGS else []
        names[learning_hash] = f"{name} ({', '.join([learning_hash, *own[:MAX_SETTINGS], *more])})"
    return names


def _learned(config: dict[str, Any]) -> dict[str, str]:
    """Dotted settings that affect training, with values as text."""
    kept = {key: value for key, value in config.items() if key not in NOT_LEARNED}
    kept["data"] = {key: value for key, value in config["data"].items() if key not in NOT_LEARNED_DATA}
    return flat_settings(kept)

"""Ensembles: average the saved scores of several members, and describe them. Needs score files only, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tencrop.config import UserError
from tencrop.config.schema import Average
from tencrop.evaluation.predictions import Scores, from_averages, protocol_of
from tencrop.evaluation.protocols import num_views
from tencrop.evaluation.results import PROTOCOL_KEYS

PREPROCESSING_KEYS = ("mean", "std", "preprocessing")
SEPARATOR = " + "  # between the values of members that differ
IMPLIED = {"loader": "beton", "blur_pool": "false"}  # defaults of metadata keys that score files omit


def ensemble(members: Sequence[Scores], names: Sequence[str]) -> Scores:
    """The scores of an ensemble: float32 means over its members, separately for softmax and logits.

    Every member has the same weight, however many views it has. Members may differ in weights, network and protocol
    (Simonyan and Zisserman 2015, Table 6, combine networks and scales), but not in their images: a UserError names the
    first member with other images.
    """
    first = members[0]
    for member, name in zip(members[1:], names[1:], strict=True):
        for what, differ in _differences(first, member):
            if differ:
                raise UserError(f"{name} and {names[0]} cannot be averaged: their {what} differ; evaluate both again")
    return from_averages(
        first.index,
        first.labels,
        _mean([member.softmax for member in members]),
        _mean([member.logits for member in members]),
        _joined_metadata([member.metadata for member in members]),
        samples=first.samples,  # their images are the same
    )


def ensemble_facts(members: Sequence[Scores], results: Sequence[Mapping[str, Any]], average: Average) -> dict[str, Any]:
    """What result.json says of an ensemble in place of a single network, with a list of its members.

    results: the members' own results, which know checkpoint and seed; an empty one if that is not known.
    """
    facts = [_member_facts(scores, known, average) for scores, known in zip(members, results, strict=True)]
    # VGG's best result is of two networks, each under two protocols: four members, which the label must not call four
    # networks.
    num_networks = len({one["weights_sha256"] for one in facts})
    label = f"ensemble of {len(facts)}"
    if num_networks < len(facts):
        label = f"{num_networks} network{'s'[: num_networks != 1]} in {len(facts)} evaluations"
    joint = {key: _joined_values([one[key] for one in facts]) for key in (*PROTOCOL_KEYS, *PREPROCESSING_KEYS)}
    return joint | {
        "averaging": average,
        "views": max(one["views"] for one in facts),
        "checkpoint": [one["checkpoint"] for one in facts],
        "label": label,
        "selection": None,
        "seed": [one["seed"] for one in facts],
        "members": facts,
    }


def is_ensemble(scores: Scores) -> bool:
    """Whether scores are the mean of several members."""
    return any(SEPARATOR in scores.metadata[key] for key in ("weights_sha256", "protocol"))


def _member_facts(scores: Scores, result: Mapping[str, Any], average: Average) -> dict[str, Any]:
    metadata, protocol = scores.metadata, protocol_of(scores.metadata, average)
    normalization = json.loads(metadata["normalization"])
    return {
        **{key: metadata[key] for key in ("model", "weights", "weights_sha256")},
        **{key: result.get(key) for key in ("checkpoint", "seed", "preprocessing")},
        "protocol": protocol.name,
        **{key: getattr(protocol, key) for key in PROTOCOL_KEYS[1:]},
        "views": num_views(protocol),
        **normalization,  # mean and std; mean_image_sha256 and changed_normalization where they apply
    }


def _joined_values(values: list[Any]) -> Any:
    # Unique values in order, without a set: a side may be a list.
    unique = [value for number, value in enumerate(values) if value not in values[:number]]
    return unique[0] if len(unique) == 1 else SEPARATOR.join(str(value) for value in unique)


def _differences(first: Scores, other: Scores) -> list[tuple[str, bool]]:
    # The fingerprint comes first: it is the most precise explanation if the labels differ as well.
    fingerprints = [scores.metadata.get("source_fingerprint") for scores in (first, other)]
    return [
        ("data (source_fingerprint)", fingerprints[0] != fingerprints[1]),
        ("images", not torch.equal(first.index, other.index)),
        ("labels", not torch.equal(first.labels, other.labels)),
        ("numbers of classes", first.softmax.shape != other.softmax.shape),
    ]


def _mean(scores: list[Tensor]) -> Tensor:
    # Added one by one: torch.stack would hold a second copy of all scores, 200 MB a member for ImageNet.
    total = scores[0]
    for member in scores[1:]:
        total = total + member
    return total / len(scores)


def _joined_metadata(members: list[dict[str, str]]) -> dict[str, str]:
    keys = dict.fromkeys(key for metadata in members for key in metadata)
    # Any other key that a member lacks is unknown to the version of the code that wrote it, and left out.
    known = [key for key in keys if key in IMPLIED or all(key in metadata for metadata in members)]
    return {key: _joined([metadata[key] if key in metadata else IMPLIED[key] for metadata in members]) for key in known}


def _joined(values: list[str]) -> str:
    # One value if all members agree, else all of them in the members' order, with repetitions.
    return values[0] if len(set(values)) == 1 else SEPARATOR.join(values)

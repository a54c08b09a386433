"""Ensembles: average the saved scores of several members. Needs score files only, no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tencrop.config import UserError
from tencrop.evaluation.predictions import Scores, from_averages

IMPLIED = {"loader": "beton"}  # defaults of metadata keys that score files omit


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
    )


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
    return {key: _joined([metadata[key] if key in metadata else IMPLIED[key] for metadata in members]) for key in keys}


def _joined(values: list[str]) -> str:
    # One value if all members agree, else all of them in the members' order, with repetitions.
    return values[0] if len(set(values)) == 1 else " + ".join(values)

"""Ensembles are means of saved scores over the same images."""

from dataclasses import replace

import pytest
import torch

from tencrop.config import UserError
from tencrop.evaluation.ensembles import ensemble
from tencrop.evaluation.errors import error_rate
from tencrop.evaluation.predictions import Scores, from_averages

IDENTITY = {"protocol": "{}", "weights_sha256": "a", "source_fingerprint": "photographs", "weights": "raw"}


def member(softmax: list[list[float]], **metadata: str) -> Scores:
    scores = torch.tensor(softmax)
    return from_averages(torch.arange(2), torch.tensor([0, 1]), scores, scores.log(), {**IDENTITY, **metadata})


def test_an_ensemble_averages_softmax_and_logits_separately() -> None:
    first, second = member([[0.75, 0.25], [0.75, 0.25]]), member([[0.25, 0.75], [0.125, 0.875]], weights_sha256="b")
    joint = ensemble([first, second], ["a.ckpt", "b.ckpt"])
    assert joint.softmax.tolist() == [[0.5, 0.5], [0.4375, 0.5625]]
    assert torch.equal(joint.logits, (first.logits + second.logits) / 2)
    assert error_rate(joint.ranks("softmax"), 1).num_errors == 1, "the tie of the first image counts against it"
    assert joint.metadata == {**IDENTITY, "weights_sha256": "a + b"}


def test_members_of_two_loaders_name_both_loaders() -> None:
    """A score file names its loader only if it is ffcv, whose pixels differ."""
    plain, other = member([[0.75, 0.25], [0.75, 0.25]]), member([[0.25, 0.75], [0.125, 0.875]], loader="ffcv")
    assert ensemble([plain, other], ["a", "b"]).metadata["loader"] == "beton + ffcv"
    assert ensemble([other, plain], ["b", "a"]).metadata["loader"] == "ffcv + beton"
    assert ensemble([other, other], ["b", "b"]).metadata["loader"] == "ffcv"


def test_members_with_and_without_blur_pooling() -> None:
    """A score file names blur pooling only where the network has it; a key of newer code is in no older file."""
    plain = member([[0.75, 0.25], [0.75, 0.25]])
    blurred = member([[0.25, 0.75], [0.125, 0.875]], blur_pool="true", of_newer_code="true")
    joint = ensemble([plain, blurred], ["a", "b"]).metadata
    assert joint["blur_pool"] == "false + true" and "of_newer_code" not in joint
    assert "blur_pool" not in ensemble([plain, plain], ["a", "a"]).metadata


def test_an_ensemble_of_one_network_twice_is_that_network() -> None:
    alone = member([[0.6, 0.4], [0.3, 0.7]])
    joint = ensemble([alone, alone, alone], ["a", "a", "a"])
    assert torch.equal(joint.ranks("softmax"), alone.ranks("softmax")) and torch.equal(joint.softmax, alone.softmax)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"index": torch.tensor([0, 2])}, "images"),
        ({"labels": torch.tensor([1, 1])}, "labels"),
        ({"softmax": torch.zeros(2, 3)}, "numbers of classes"),
        ({"metadata": {**IDENTITY, "source_fingerprint": "drawings"}}, "data"),
    ],
)
def test_members_of_other_images_are_refused(change: dict, named: str) -> None:
    first = member([[0.6, 0.4], [0.3, 0.7]])
    with pytest.raises(UserError, match=f"b.ckpt and a.ckpt cannot be averaged: their {named}"):
        ensemble([first, replace(first, **change)], ["a.ckpt", "b.ckpt"])


def test_members_certain_of_different_classes_do_not_tie() -> None:
    """One is slightly more certain; in float16 both would be 1, and the tie would count against the label."""
    sure = [torch.tensor([[0.9999, 0.0, 1e-4]]), torch.tensor([[0.0, 0.9998, 2e-4]])]
    index, labels = torch.tensor([0]), torch.tensor([0])
    members = [from_averages(index, labels, softmax, softmax.log().clamp(min=-100), IDENTITY) for softmax in sure]
    assert [int(member.softmax_ranks) for member in members] == [0, 2]
    joint = ensemble(members, ["a", "b"])
    assert torch.equal(joint.softmax, torch.stack(sure).mean(0)) and int(joint.softmax_ranks) == 0

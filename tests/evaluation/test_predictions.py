"""Score files: round trip, refusal of broken files, and joining the parts of several processes."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tencrop.config import Protocol, UserError
from tencrop.evaluation.predictions import (
    Scores,
    from_averages,
    gather,
    load_scores,
    protocol_text,
    save_scores,
    saved_scores,
)
from tencrop.evaluation.score_files import read_ranks

IDENTITY = {"protocol": "{}", "weights_sha256": "ab", "source_fingerprint": "cd", "weights": "raw"}


def scores_of(index: torch.Tensor, num_classes: int = 7) -> Scores:
    """Scores that are a function of the image's index."""
    logits = torch.sin(index[:, None] * 3.7 + torch.arange(num_classes) ** 2).float()
    return from_averages(index, index % num_classes, logits.softmax(1), logits, IDENTITY, logits[:, None])


def assert_same(found: Scores, expected: Scores) -> None:
    assert found.metadata == expected.metadata and found.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert torch.equal(found.tensors()[name], tensor) and found.tensors()[name].dtype == tensor.dtype, name


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    scores, path = scores_of(torch.arange(10)), tmp_path / "new folder" / "center.safetensors"
    save_scores(path, scores)
    assert_same(load_scores(path), scores)
    assert [file.name for file in path.parent.iterdir()] == ["center.safetensors"], "nothing temporary is left"
    assert scores.softmax.dtype == scores.logits.dtype == torch.float32
    assert_same(load_scores(path), load_scores(path))
    again = tmp_path / "again.safetensors"
    save_scores(again, scores)
    assert again.read_bytes() == path.read_bytes()


def test_scores_are_saved_in_the_precision_of_their_ranks() -> None:
    """0.30001 and 0.30002 are equal in float16; a reader of the file must see that the label is the best class."""
    softmax = torch.tensor([[0.30001, 0.30002, 0.39997 - 0.3]])
    scores = from_averages(torch.tensor([0]), torch.tensor([1]), softmax, softmax.log(), IDENTITY)
    assert torch.equal(scores.softmax, softmax) and torch.equal(scores.logits, softmax.log())
    assert scores.ranks("softmax").tolist() == scores.ranks("logits").tolist() == [0]


def test_an_image_whose_scores_are_nan_has_no_rank(tmp_path: Path) -> None:
    logits = torch.tensor([[1e6, -1e6], [float("nan"), 0.0]])
    zeros = torch.zeros(2, dtype=torch.int64)
    scores = from_averages(torch.arange(2), zeros, logits.clone(), logits, IDENTITY, logits[:, None])
    assert scores.view_logits is not None and scores.view_logits[0].isfinite().all(), "a large one fits into float16"
    assert scores.ranks("logits").tolist() == [0, -1]
    save_scores(tmp_path / "nan.safetensors", scores)
    assert load_scores(tmp_path / "nan.safetensors").ranks("logits").tolist() == [0, -1]


def test_saved_scores_are_used_only_for_the_same_weights_data_and_protocol(tmp_path: Path) -> None:
    path = tmp_path / "center.safetensors"
    labels = np.arange(10) % 7
    assert saved_scores(path, IDENTITY, labels=labels) is None
    save_scores(path, replace(scores_of(torch.arange(10)), view_logits=None))
    assert saved_scores(path, IDENTITY, labels=labels) is not None
    for key in IDENTITY:
        assert saved_scores(path, {**IDENTITY, key: "another"}, labels=labels) is None
    assert saved_scores(path, IDENTITY, labels=labels, with_views=True) is None
    assert saved_scores(path, IDENTITY, labels=labels[:9]) is None, "the data have other images"
    assert saved_scores(path, IDENTITY, labels=labels[::-1]) is None, "the data have other labels"
    path.write_bytes(path.read_bytes()[:-7])
    assert saved_scores(path, IDENTITY, labels=labels) is None, "a broken file is computed again"


def test_protocol_text_excludes_the_average() -> None:
    rule = Protocol(name="center", side=256, size=224, region="whole", filter="bicubic", average="softmax")
    assert protocol_text(rule) == protocol_text(replace(rule, average="logits"))
    others: list[dict[str, Any]] = [
        {"name": "ten_crop"},
        {"side": None},
        {"size": 2},
        {"region": "square"},
        {"filter": "box"},
        {"resize": "warp"},
    ]
    assert len({protocol_text(rule), *(protocol_text(replace(rule, **other)) for other in others)}) == 7
    # as in score files written before there was a choice: those stay valid
    assert protocol_text(rule) == (
        '{"filter": "bicubic", "name": "center", "region": "whole", "side": 256, "size": 224}'
    )


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    with pytest.raises(UserError, match="no such score file"):
        load_scores(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no score file of this version"):
        load_scores(path)
    path.write_bytes(pickle.dumps(os.system))
    with pytest.raises(UserError, match="broken score file"):
        load_scores(path)


NUM_IMAGES = 5
CRAFTED = {
    "an image twice": {"index": torch.tensor([0, 1, 1, 3, 4])},
    "an image left out": {"index": torch.tensor([0, 1, 2, 3, 5])},
    "a label beyond the classes": {"labels": torch.tensor([0, 1, 2, 3, 7])},
    "too few labels": {"labels": torch.tensor([0, 1])},
    "too few classes": {"softmax": torch.zeros(NUM_IMAGES, 6)},
    "float16": {"softmax": torch.zeros(NUM_IMAGES, 7).half(), "logits": torch.zeros(NUM_IMAGES, 7).half()},
    "half the images": {name: tensor[:3] for name, tensor in scores_of(torch.arange(NUM_IMAGES)).tensors().items()}
    | {"softmax": torch.zeros(NUM_IMAGES, 7), "logits": torch.zeros(NUM_IMAGES, 7)},
    "ranks that are all 0": {"softmax_ranks": torch.zeros(NUM_IMAGES, dtype=torch.int32)},
    "ranks below 0": {"logits_ranks": torch.full((NUM_IMAGES,), -7, dtype=torch.int32)},
    "a score that was changed": {"softmax": scores_of(torch.arange(NUM_IMAGES)).softmax + torch.eye(NUM_IMAGES, 7)},
}


@pytest.mark.parametrize("is_signed", [False, True], ids=["damaged", "crafted"])
@pytest.mark.parametrize("changes", CRAFTED.values(), ids=CRAFTED)
def test_score_files_that_contradict_themselves_are_refused(changes: dict, is_signed: bool, tmp_path: Path) -> None:
    """With the digest as written, and with one that was recomputed after the change."""
    path, scores = tmp_path / "scores.safetensors", scores_of(torch.arange(NUM_IMAGES))
    save_scores(path, scores)
    if is_signed:
        save_scores(path, replace(scores, **changes))
    else:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file({**load_file(path), **changes}, path, metadata)
    with pytest.raises(UserError, match="broken score file"):
        load_scores(path)


def test_changed_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    save_scores(path, scores_of(torch.arange(3)))
    path.write_bytes(path.read_bytes().replace(b'weights_sha256\\": \\"ab', b'weights_sha256\\": \\"ac'))
    with pytest.raises(UserError, match=r"broken score file \(its content is not what was written"):
        load_scores(path)


def save_in_float16(path: Path, scores: Scores) -> None:
    """Write a score file as earlier code did: float16 scores with the ranks of the float32 scores, no digest."""
    tensors = scores.tensors() | {"softmax": scores.softmax.half(), "logits": scores.logits.half()}
    facts = {"format": "tencrop scores 1", **scores.metadata}
    save_file(tensors, path, {"scores": json.dumps(facts, sort_keys=True)})


def test_float16_files_are_computed_again_but_their_ranks_are_readable(tmp_path: Path) -> None:
    path, scores = tmp_path / "center.safetensors", scores_of(torch.arange(10))
    save_in_float16(path, scores)
    assert saved_scores(path, IDENTITY, labels=scores.labels.numpy()) is None
    with pytest.raises(UserError, match=r"no score file of this version .*; run evaluate\.py again"):
        load_scores(path)
    ranks, metadata = read_ranks(path, "logits")
    assert np.array_equal(ranks, scores.logits_ranks) and metadata == IDENTITY


def test_gather_without_a_group_sorts_by_index() -> None:
    index = torch.tensor([4, 0, 3, 1, 2])
    whole = gather(scores_of(index))
    assert whole is not None
    assert_same(whole, scores_of(torch.arange(5)))


def _gather_parts(rank: int, parts: list[list[int]], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=len(parts))
    whole = gather(scores_of(torch.tensor(parts[rank], dtype=torch.int64)))
    assert (whole is None) == (rank > 0)
    if whole is not None:
        save_scores(folder / "whole.safetensors", whole)
    dist.destroy_process_group()


def test_gather_joins_uneven_and_empty_parts(tmp_path: Path) -> None:
    mp.spawn(_gather_parts, ([[], [3, 0, 6, 1, 2, 5, 4]], tmp_path), nprocs=2)
    assert_same(load_scores(tmp_path / "whole.safetensors"), scores_of(torch.arange(7)))


def test_an_unreadable_file_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.safetensors"
    scores = scores_of(torch.arange(3))
    save_scores(path, scores)

    def refused(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("No such file or directory")  # as safetensors says it, without a number

    monkeypatch.setattr("tencrop.evaluation.score_files.safe_open", refused)
    with pytest.raises(UserError, match=r"scores\.safetensors: is a broken score file"):
        read_ranks(path, "softmax")
    assert saved_scores(path, scores.metadata, labels=scores.labels.numpy()) is None

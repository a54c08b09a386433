"""Reading score files without torch: the same digest, ranks and content as torch's."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tencrop.config import UserError
from tencrop.evaluation.errors import label_ranks
from tencrop.evaluation.predictions import from_averages, save_scores
from tencrop.evaluation.score_files import count_ranks, read_ranks, read_scores, scores_digest
from tencrop.models.checkpoint_files import weights_sha256

IDENTITY = {"protocol": "{}", "weights_sha256": "ab", "source_fingerprint": "cd", "weights": "raw"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A score file of 40 images in 6 classes, with the logits of two views."""
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    views = torch.stack([logits, logits], 1)
    scores = from_averages(torch.arange(40), torch.arange(40) % 6, logits.softmax(1), logits, IDENTITY, views)
    save_scores(tmp_path / "center.safetensors", scores)
    return tmp_path / "center.safetensors"


def test_what_is_read_is_what_was_written(saved: Path) -> None:
    arrays, metadata = read_scores(saved)
    assert metadata == IDENTITY and arrays["view_logits"].dtype == np.float16
    for name, array in load_file(saved).items():
        assert np.array_equal(arrays[name], array) and arrays[name].dtype == array.dtype
    ranks, facts = read_ranks(saved, "logits")
    assert np.array_equal(ranks, arrays["logits_ranks"]) and facts == IDENTITY


def test_samples_of_a_subset_are_ascending(tmp_path: Path) -> None:
    logits, path = torch.eye(3), tmp_path / "center.safetensors"
    for samples, message in (([3, 4, 9], None), ([3, 3, 9], "not ascending"), ([3, 9], "not one number per image")):
        given = torch.tensor(samples)
        scores = from_averages(torch.arange(3), torch.arange(3), logits.softmax(1), logits, IDENTITY, samples=given)
        save_scores(path, scores)
        if message is None:
            assert read_scores(path)[0]["samples"].tolist() == samples
        else:
            with pytest.raises(UserError, match=message):
                read_scores(path)


def test_ranks_follow_the_top_k_rule_of_training_and_evaluation() -> None:
    # integers from 0 to 3 among 8 classes: nearly every image has a tie
    scores = torch.randint(0, 4, (200, 8), generator=torch.Generator().manual_seed(0)).float()
    scores[3, 2], scores[5, 0], scores[7] = float("nan"), float("inf"), float("-inf")
    labels = torch.arange(200) % 8
    ranks = count_ranks(scores.numpy(), labels.numpy())
    assert ranks.dtype == np.int32 and ranks.tolist() == label_ranks(scores, labels).tolist()
    assert ranks[[3, 5, 7]].tolist() == [-1, -1, -1] and len(set(ranks.tolist())) == 9


def test_the_digest_is_that_of_files_written_before() -> None:
    """It was computed from tensors, and must not change: saved scores would be computed again."""
    tensors = {"a": torch.arange(3), "c": torch.eye(2), "b": torch.ones(2, 3).half(), "empty": torch.zeros(0, 4)}
    facts = json.dumps(IDENTITY, sort_keys=True)
    expected = hashlib.sha256(f"{weights_sha256(tensors)} {facts}".encode()).hexdigest()
    assert scores_digest({name: tensor.numpy() for name, tensor in tensors.items()}, IDENTITY) == expected


def rewritten(path: Path, *, sign: bool, **changes: np.ndarray) -> None:
    """Write a score file again with other arrays; sign: with the digest of the new content."""
    arrays = {**load_file(path), **changes}
    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["scores"])
    if sign:
        facts["sha256"] = scores_digest(arrays, IDENTITY)
    save_file(arrays, path, {"scores": json.dumps(facts, sort_keys=True)})


@pytest.mark.parametrize("sign", [False, True])
def test_a_changed_label_is_refused(saved: Path, sign: bool) -> None:
    labels = load_file(saved)["labels"].copy()
    labels[7] = (labels[7] + 1) % 6
    rewritten(saved, sign=sign, labels=labels)
    reason = "ranks are not those of its scores" if sign else "not what was written"
    with pytest.raises(UserError, match=rf"center\.safetensors: is a broken score file .*{reason}"):
        read_scores(saved)


def test_an_unknown_array_is_refused(saved: Path) -> None:
    rewritten(saved, sign=True, extra=np.zeros(3))
    with pytest.raises(UserError, match="extra: missing, or no array of a score file"):
        read_scores(saved)


def test_a_truncated_file_and_another_digest_are_refused(saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:-100])
    with pytest.raises(UserError, match="broken score file"):
        read_scores(saved)
    digest = json.loads(read_text_metadata(content))["sha256"]
    saved.write_bytes(content.replace(digest.encode(), (digest[:-1] + ("0" if digest[-1] != "0" else "1")).encode()))
    with pytest.raises(UserError, match="not what was written"):
        read_scores(saved)


def read_text_metadata(content: bytes) -> str:
    """The JSON text in the header of a .safetensors file: 8 bytes of length, then the header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]["scores"]


def test_reading_does_not_import_torch(saved: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tencrop.evaluation.score_files import read_scores\n"
        f"read_scores(Path({str(saved)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

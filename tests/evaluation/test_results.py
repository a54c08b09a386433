"""result.json and the printed table."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tencrop.config import Claim, UserError
from tencrop.evaluation.predictions import from_averages
from tencrop.evaluation.results import load_result, print_results, result_of, save_result

IDENTITY = {"protocol": "{}", "weights": "ema", "weights_sha256": "ab", "source_fingerprint": "cd", "normalization": ""}


@pytest.fixture
def result(composed):
    """Of 4 images in 8 classes: the softmax is right about three, the logits about two."""
    softmax, logits = torch.rand(4, 8) / 2, torch.rand(4, 8)
    labels = torch.arange(4)
    softmax[labels, labels] = torch.tensor([1.0, 1.0, 1.0, -1.0])
    logits[labels, labels] = torch.tensor([2.0, 2.0, -1.0, -1.0])
    scores = from_averages(torch.arange(4), labels, softmax, logits, IDENTITY)

    def build(*overrides: str) -> dict:
        config = composed("experiment=lenet5_digits", "protocol=five_crop", *overrides)
        config.claim = Claim(0.95, None, "mnist", "test", "center", "LeCun et al. 1998")
        return result_of(scores, config, label="lenet5 seed 0", scores="five_crop.safetensors")

    return build


def test_errors_follow_the_average_that_is_chosen(result) -> None:
    softmax, logits = result(), result("protocol.average=logits")
    assert (softmax["top1_error"], softmax["averaging"]) == (0.25, "softmax")
    assert (logits["top1_error"], logits["averaging"]) == (0.5, "logits")
    assert softmax["top1_interval"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    assert softmax["claim"]["top1_error"] == 0.95 and softmax["protocol"] == "five_crop" and softmax["side"] == 36


def test_what_is_saved_comes_back_and_what_is_not_ours_is_refused(result, tmp_path: Path) -> None:
    path = tmp_path / "new" / "five_crop.result.json"
    save_result(path, result())
    assert load_result(path) == result()
    for content in ("", "{", "[]", '{"top1_error": 0}', '{"format": "another"}'):
        path.write_text(content)
        with pytest.raises(UserError, match="evaluate"):
            load_result(path)
    with pytest.raises(UserError, match="no result"):
        load_result(tmp_path / "missing.json")


def test_the_table_shows_percent_and_intervals(result) -> None:
    console = Console(file=io.StringIO(), width=120)
    print_results([result()], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    row = next(line for line in text.splitlines() if "lenet5 seed 0 (EMA)" in line)
    for cell in ("five_crop 32 of 36 px, softmax", "25.00", "4.56–69.94", " 4 "):
        assert cell in row, (cell, text)

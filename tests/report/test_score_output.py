"""report.py scores=...: the statistics of score files alone, and a broken file that costs the others nothing."""

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tencrop.config import UserError
from tencrop.evaluation.predictions import from_averages, save_scores
from tencrop.report.score_output import report_scores

ROOT = Path(__file__).parents[2]
IDENTITY = {"protocol": "{}", "weights_sha256": "ab" * 32, "source_fingerprint": "cd", "model": "tiny", "data": "toys"}

# [4 images, 2 views, 3 classes]; labels 0, 0, 1, 0
VIEWS = np.array(
    [
        [[4, 0, 0], [4, 0, 0]],  # right
        [[0, 2, 0], [0, 2, 0]],  # taken for 1
        [[0, 1, 0], [0, 1.5, 0]],  # right, with views that agree
        [[0, 9.4, 0], [9.5, 0, 0]],  # right, with views that disagree
    ]
)


def reported(*words: Path, output: Path, **options) -> int:
    options = {"average": "softmax", "ks": [1, 2, 3], **options}
    return report_scores([str(word) for word in words], output=output, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Four images in three classes, averaged over two views."""
    views = torch.from_numpy(VIEWS).float()
    softmax, logits = views.softmax(2).mean(1), views.mean(1)
    scores = from_averages(torch.arange(4), torch.tensor([0, 0, 1, 0]), softmax, logits, IDENTITY)
    save_scores(tmp_path / "scores" / "ten_crop.safetensors", scores)
    return tmp_path / "scores" / "ten_crop.safetensors"


def test_errors_classes_and_pairs_by_hand(saved, tmp_path, capsys):
    assert reported(saved, output=tmp_path / "out") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tiny on toys, ten_crop, averaged softmax; 4 images, 3 classes; weights abababababab" in text
    assert "top-1 25.00 4.56 – 69.94 1" in text and "top-3 0.00" in text
    assert "top-2 25.00" in text, "the label of the second image ties with class 2, which counts against it"
    (row, other) = rows_of(tmp_path / "out" / "scores-classes.csv")
    assert (row["class"], row["images"], row["errors"], row["taken_for"], row["times"]) == (
        "class 0", "3", "1", "class 1", "1",
    )  # fmt: skip
    assert (other["class"], other["errors"], other["taken_for"]) == ("class 1", "0", "")
    (pair,) = rows_of(tmp_path / "out" / "scores-confused.csv")
    assert (pair["class"], pair["taken_for"], pair["images"]) == ("class 0", "class 1", "1")


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_calibration_of_either_average(saved, tmp_path, capsys, average):
    reported(saved, output=tmp_path / "out", average=average)
    arrays = {"softmax": softmax_means(), "logits": softmax_of_means()}
    best, right = arrays[average].max(1), np.array([True, False, True, True])
    # every image lies in a bin of its own, so the error is the mean over images
    expected = np.abs(right - best).mean()
    text = capsys.readouterr().out
    which = {"softmax": "its softmax averaged over the views", "logits": "the softmax of its logits averaged"}[average]
    assert f"Expected calibration error: {100 * expected:.2f} points, over 15 bins of equal width" in text
    assert which in text
    rows = rows_of(tmp_path / "out" / "scores-calibration.csv")
    assert len(rows) == 15 and [int(row["images"]) for row in rows].count(1) == 4
    assert "<svg" in (tmp_path / "out" / "reliability-1-ten_crop.svg").read_text()


def softmax_means() -> np.ndarray:
    exponentials = np.exp(VIEWS)
    return (exponentials / exponentials.sum(2, keepdims=True)).mean(1)


def softmax_of_means() -> np.ndarray:
    exponentials = np.exp(VIEWS.mean(1))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_a_broken_file_costs_the_others_nothing(saved, tmp_path, capsys):
    content = saved.read_bytes()
    at = content.rindex(np.float32(4).tobytes())  # a logit
    (saved.parent / "changed.safetensors").write_bytes(content[:at] + np.float32(5).tobytes() + content[at + 4 :])
    (saved.parent / "cut.safetensors").write_bytes(content[:-40])
    assert reported(saved.parent, output=tmp_path / "out") == 2
    found = capsys.readouterr()
    assert "top-1     25.00" in found.out and found.out.count("Expected calibration error") == 1
    lines = found.err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: left out: ") for line in lines)
    assert "changed.safetensors: is a broken score file (its content is not what was written" in lines[0]
    with pytest.raises(UserError, match=r"cut\.safetensors: is a broken score file"):
        reported(saved.parent / "cut.safetensors", output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_scores_of_a_run_have_the_names_of_its_classes(evaluated_run, tmp_path, capsys):
    run = evaluated_run(num_wrong=8)
    shutil.rmtree(run / "checkpoints")
    assert reported(run, output=tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "top-1 1.60" in text and "Most confused classes class taken for images 0 1 8" in text


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nowhere", r"scores=.*nowhere: there is no such file or folder; name a run folder or a score file"),
        ("notes.txt", r"notes\.txt: is no score file; evaluate\.py writes them as PROTOCOL\.safetensors"),
        ("empty", r"scores=.*empty: is no run folder and holds no score file \(\*\.safetensors\)$"),
        ("runs", r"it holds runs, so name one of them, such as scores=.*seed0"),
    ],
)
def test_what_is_no_score_file_is_refused(evaluated_run, tmp_path, word, sentence):
    evaluated_run()
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        reported(tmp_path / word, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["k=[0]"], "error: k=[0]: must be a list [A,B,...] of whole numbers above 0"),
        (["k=[]"], "error: k=[]: names no number; give k=[1,5]"),
        (["average=mean"], "error: average=mean: must be one of softmax, logits"),
        (["table=vgg_table3"], "error: table= and scores=: one at a time; run report.py once for each"),
    ],
)
def test_the_command_refuses_in_one_sentence(saved, tmp_path, words, sentence):
    result = command(saved, *words, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.strip()) == (2, "", sentence)


def test_the_command_needs_no_torch(saved, tmp_path):
    result = command(saved, "k=[1,3]", cwd=tmp_path, flags=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert result.returncode == 0 and "tencrop" in imported and not {"torch", "timm", "scipy"} & imported
    assert "top-3" in result.stdout


def command(saved: Path, *words: str, cwd: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *flags, str(ROOT / "report.py"), f"scores={saved}", *words]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=900)

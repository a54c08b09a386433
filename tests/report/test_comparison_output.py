"""report.py compare=[A,B]: counts, flips and classes of two runs, and what it refuses."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tencrop.config import UserError
from tencrop.data.store.manifest import open_split
from tencrop.evaluation.score_files import scores_digest
from tencrop.records.run_folder import read_run_manifest
from tencrop.report.comparison_output import report_comparison
from tencrop.report.paired import Paired

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_runs(evaluated_run):
    """Seed 0 wrong about the first 8 images, and seed 1 about the first 5."""
    return evaluated_run(num_wrong=8), evaluated_run("seed=1", num_wrong=5)


def compared(words, output, **options) -> int:
    options = {"average": "softmax", "ks": [1, 5], **options}
    return report_comparison([str(word) for word in words], output=output, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def rewrite(path: Path, *, arrays: dict | None = None, facts: dict | None = None) -> None:
    """Write a score file with other arrays or metadata, and the digest of the new content."""
    with safe_open(path, "np") as file:
        metadata = json.loads(file.metadata()["scores"])
    found, metadata = {**load_file(path), **(arrays or {})}, {**metadata, **(facts or {})}
    signed = {key: value for key, value in metadata.items() if key not in ("format", "sha256")}
    metadata["sha256"] = scores_digest(found, signed)
    save_file(found, path, {"scores": json.dumps(metadata, sort_keys=True)})


def test_two_runs_are_compared_image_by_image(two_runs, tmp_path, prepared_digits, capsys):
    assert compared(two_runs, tmp_path / "out") == 0
    text = " ".join(capsys.readouterr().out.split())
    low, high = (f"{100 * end:+.2f}".replace("-", "−") for end in Paired(492, 3, 0, 5).interval)
    # three images flip: p = 2 / 2**3
    assert f"top-1 1.60 1.00 −0.60 {low} to {high} 0.25" in text
    assert "top-1 A right 492 0 A wrong 3 5" in text and "top-5 A right 500 0 A wrong 0 0" in text
    assert "The test protocols are equal. The training data are the same." in text
    split = open_split(prepared_digits, "val")
    flips = rows_of(tmp_path / "out" / "comparison-flips.csv")
    assert [row["image"] for row in flips] == [split.names(index) for index in (5, 6, 7)]
    assert {(row["k"], row["only_wrong"], row["label"], row["answer_a"], row["answer_b"]) for row in flips} == {
        ("1", "A", "0", "1", "0")
    }
    assert "Images that only A gets wrong at top-1: 3" in text and split.names(6) in text
    (row,) = rows_of(tmp_path / "out" / "comparison-classes.csv")
    assert (row["class"], row["errors_a"], row["errors_b"]) == ("0", "8", "5")
    assert int(row["images"]) == int((np.asarray(split.labels) == 0).sum())
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert f"| top-1 | 1.60 | 1.00 | −0.60 | {low} to {high} | 0.25 |" in markdown


def test_the_page_shows_the_images_that_flip(two_runs, tmp_path, prepared_digits):
    compared(two_runs, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Only A is wrong at top-1: 3 of 3 images" in page and "Only B" not in page.partition("<h3>")[2]
    assert page.count('<img class=pixels src="data:image/png;base64,') == 3
    split = open_split(prepared_digits, "val")
    assert all(f'alt="{split.names(index)}"' in page for index in (5, 6, 7))
    assert page.count("<span>A: 1</span>") == page.count("<span>B: 0</span>") == 3  # B is right: the digit is a 0
    cells = re.sub("</t[dh]><td[^>]*>", " ", page)
    assert ">top-1 1.60 1.00 −0.60 " in cells and ">0 45 17.78 11.11 −6.67<" in cells  # 8 and 5 of the 45 zeros


def test_the_page_of_files_without_data_has_no_pictures(two_runs, tmp_path, prepared_digits):
    loose = [tmp_path / f"{letter}.safetensors" for letter in "ab"]
    for file, folder in zip(loose, two_runs, strict=True):
        file.write_bytes((folder / "predictions" / "center.safetensors").read_bytes())
    compared(loose, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<img" not in page and "No images to show: their prepared data are not on this machine" in page
    compared(loose, tmp_path / "out", data_root=str(prepared_digits))
    assert (tmp_path / "out" / "comparison.html").read_text().count("<img") == 3


def test_differing_protocols_and_training_data_are_named(two_runs, tmp_path, capsys):
    a, b = (folder / "predictions" / "center.safetensors" for folder in two_runs)
    rewrite(a, facts={"protocol": json.dumps({"name": "center", "side": 36}), "precision": "fp32"})
    rewrite(b, facts={"protocol": json.dumps({"name": "ten_crop", "side": 36}), "precision": "bf16"})
    path = two_runs[1] / "manifest.json"
    manifest = read_run_manifest(path.parent)
    manifest["data"]["splits"]["train"]["store_fingerprint"] = "ab" * 32
    path.write_text(json.dumps(manifest))
    compared([a, b], tmp_path / "out")
    text = capsys.readouterr().out
    assert "The test protocols differ: name center and ten_crop." in text
    assert "The evaluations differ: precision fp32 and bf16." in text and "The training data differ." in text


def test_scores_of_weights_that_were_replaced_are_named(two_runs, tmp_path, capsys):
    rewrite(two_runs[1] / "predictions" / "center.safetensors", facts={"weights_sha256": "ab" * 32})
    compared(two_runs, tmp_path / "out")
    assert "B's scores are not of the weights that its run ended with." in capsys.readouterr().out


def test_only_protocols_that_both_runs_have_are_compared(two_runs, tmp_path, capsys):
    a, b = (folder / "predictions" for folder in two_runs)
    (a / "five_crop.safetensors").write_bytes((a / "center.safetensors").read_bytes())
    compared(two_runs, tmp_path / "out")
    assert capsys.readouterr().out.count("The test protocols are equal") == 1
    (a / "center.safetensors").rename(a / "dense.safetensors")
    sentence = (
        r"no score file has the same name in both \(.*has dense.safetensors, five_crop.safetensors; .*name two files"
    )
    with pytest.raises(UserError, match=sentence):
        compared(two_runs, tmp_path / "out")
    assert compared([a / "dense.safetensors", b / "center.safetensors"], tmp_path / "out") == 0
    assert "dense and center" in (tmp_path / "out" / "comparison.md").read_text()


def test_names_come_from_data_root_outside_run_folders(two_runs, tmp_path, prepared_digits, capsys):
    loose = []
    for letter, folder in zip("ab", two_runs, strict=True):
        loose.append(tmp_path / letter / "center.safetensors")
        loose[-1].parent.mkdir()
        loose[-1].write_bytes((folder / "predictions" / "center.safetensors").read_bytes())
    compared(loose, tmp_path / "out")
    assert "image 6 class 0 class 1 class 0" in " ".join(capsys.readouterr().out.split())
    compared(loose, tmp_path / "out", data_root=str(prepared_digits))
    assert open_split(prepared_digits, "val").names(6) in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_and_nothing_is_written(two_runs, tmp_path):
    a, b = (folder / "predictions" / "center.safetensors" for folder in two_runs)
    with pytest.raises(UserError, match=r"compare=\[.*\]: takes two run folders or score files"):
        compared([a], tmp_path / "out")
    with pytest.raises(UserError, match="there is no such file or folder"):
        compared([a, tmp_path / "nowhere"], tmp_path / "out")
    content = b.read_bytes()
    rewrite(b, facts={"source_fingerprint": "cd" * 32})
    with pytest.raises(UserError, match=r"are of different images \(500 and 500; .*cdcdcdcdcdcd\)"):
        compared([a, b], tmp_path / "out")
    b.write_bytes(content)
    rewrite(b, arrays=relabeled(b))
    with pytest.raises(UserError, match="have different labels or classes"):
        compared([a, b], tmp_path / "out")
    b.write_bytes(content[:-9])
    with pytest.raises(UserError, match="broken score file"):
        compared([a, b], tmp_path / "out")
    b.unlink()
    with pytest.raises(UserError, match="the run has no scores; evaluate it"):
        compared(two_runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def relabeled(path: Path) -> dict[str, np.ndarray]:
    """A file's labels and scores with class 0 and class 1 swapped in image 3: consistent, but another truth."""
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    arrays["labels"][3] = {0: 1, 1: 0}[int(arrays["labels"][3])]
    for name in ("softmax", "logits"):
        arrays[name][3, [0, 1]] = arrays[name][3, [1, 0]]
    return arrays


def test_scores_that_are_nan_are_refused(two_runs, tmp_path):
    path = two_runs[0] / "predictions" / "center.safetensors"
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    arrays["softmax"][4], arrays["softmax_ranks"][4] = np.nan, -1
    rewrite(path, arrays=arrays)
    with pytest.raises(UserError, match=r"of 1 of 500 images are NaN or infinite \(the first is image number 4\)"):
        compared(two_runs, tmp_path / "out")


def test_the_command_needs_no_torch(two_runs, tmp_path):
    a, b = two_runs
    command = [
        sys.executable,
        "-X",
        "importtime",
        str(ROOT / "report.py"),
        f"compare=[{a},{b}]",
        f"output={tmp_path}/o",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert result.returncode == 0 and "scipy" in imported and not {"torch", "timm", "matplotlib"} & imported
    refused = subprocess.run([*command[:1], *command[3:4], f"compare=[{a}]"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)

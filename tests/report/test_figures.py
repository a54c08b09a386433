"""Kernels are drawn pixel for pixel; the panel shows the images and labels of the scores."""

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tencrop.data.store import encode
from tencrop.data.store.manifest import open_split
from tencrop.evaluation.predictions import from_averages, load_scores, save_scores
from tencrop.report.collect import collect
from tencrop.report.figures import (
    _top_labels,
    choose_images,
    first_kernels,
    kernel_figure,
    kernel_picture,
    panel_figure,
)
from typed import present


def pictures_in(html):
    encoded = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def test_kernels_are_stretched_and_enlarged_exactly():
    kernels = np.zeros((2, 3, 11, 11), np.float32)
    kernels[0, 0, 2, 3], kernels[0, 1, 0, 0] = 5.0, -5.0
    picture = np.asarray(kernel_picture(kernels))
    assert picture.shape == (44, 44 + 4 + 44, 4)
    tile = picture[:, :44]
    assert (tile[8:12, 12:16, 0] == 255).all() and (tile[0:4, 0:4, 1] == 0).all()
    assert (tile[20:, 20:, :3] == 128).all()  # zero lies in the middle of the range
    assert (picture[:, 44:48, 3] == 0).all() and (picture[:, 48:, :3] == 0).all()  # gap; a constant kernel


def test_first_kernels_are_the_first_layer_over_the_image():
    state = {
        "pos_embed": torch.zeros(1, 197, 192),
        "stem.weight": torch.zeros(8, 3, 1, 1),
        "patch.weight": torch.ones(4, 3, 16, 16),
        "later.weight": torch.zeros(4, 3, 3, 3),
    }
    assert present(first_kernels(state)).shape == (4, 3, 16, 16)
    assert first_kernels({"fc.weight": torch.zeros(4, 4)}) is None


def test_kernel_figure(evaluated_run):
    folder = evaluated_run()
    run = collect([folder])[0].runs[0]
    html = kernel_figure(run)
    assert "6 kernels of 5 × 5 × 1" in html
    assert pictures_in(html)[0].size == (6 * 45 + 5 * 4, 45)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    assert "No kernels to show" in kernel_figure(run), "the errors of this run, and other runs, are reported"
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert "not in the run folder" in kernel_figure(run)


def scores_with(num_images, num_wrong):
    labels = torch.zeros(num_images, dtype=torch.int64)
    logits = torch.tensor([[2.0, 1.0]]).repeat(num_images, 1)
    logits[:num_wrong] = torch.tensor([1.0, 2.0])
    return from_averages(torch.arange(num_images), labels, logits.softmax(1), logits, {})


@pytest.mark.parametrize(
    ("num_images", "num_wrong", "shown_wrong", "shown"),
    [(100, 50, 4, 8), (100, 1, 1, 8), (100, 100, 8, 8), (100, 0, 0, 8), (3, 1, 1, 3), (6, 5, 5, 6)],
)
def test_choice_of_images(num_images, num_wrong, shown_wrong, shown):
    scores = scores_with(num_images, num_wrong)
    chosen = choose_images(scores)
    assert len(chosen) == len(set(chosen)) == shown
    assert sum(position < num_wrong for position in chosen) == shown_wrong
    assert chosen == choose_images(scores)


def test_panel_shows_labels_and_images(evaluated_run, prepared_digits):
    run = collect([evaluated_run(num_wrong=500)])[0].runs[0]
    (result,) = run.results
    html = panel_figure(run, result)
    scores = load_scores(result.scores)
    split = open_split(prepared_digits, "val")
    first = choose_images(scores)[0]
    pixels = np.asarray(Image.open(io.BytesIO(split.read_original(first))).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(pictures_in(html)[0].convert("RGB")), pixels)
    card = html.split("</figure>")[0]
    assert f"<figcaption>{int(split.labels[first])}</figcaption>" in card
    bars = re.findall(r"<li( class=right)? title=\"([\d.]+)%\">.*?<span>(.*?)</span>", card)
    assert len(bars) == 5
    assert bars[0][2] == str((int(split.labels[first]) + 1) % 10) and not bars[0][0]
    assert [label for right, _, label in bars if right] == [str(int(split.labels[first]))]
    assert float(bars[0][1]) == pytest.approx(100 * scores.softmax[first].max().item(), abs=0.06)


def test_panel_of_a_subset_shows_its_own_images(evaluated_run, prepared_digits, tmp_path):
    run = collect([evaluated_run()])[0].runs[0]
    split, samples = open_split(prepared_digits, "val"), torch.arange(490, 500)
    labels = torch.tensor(split.labels[490:500]).long()
    logits = torch.nn.functional.one_hot(labels, 10).float()
    scores = from_averages(torch.arange(10), labels, logits.softmax(1), logits, {}, samples=samples)
    save_scores(tmp_path / "scores.safetensors", scores)
    facts = run.results[0].facts | {"split_fingerprint": split.source_fingerprint}
    changes = {"scores": tmp_path / "scores.safetensors", "source_fingerprint": "of the ten", "facts": facts}
    (shown, *_) = pictures_in(panel_figure(run, replace(run.results[0], **changes)))
    original = split.read_original(490 + choose_images(scores)[0])
    np.testing.assert_array_equal(
        np.asarray(shown.convert("RGB")), np.asarray(Image.open(io.BytesIO(original)).convert("RGB"))
    )


@pytest.mark.parametrize(("margin", "first"), [(1e-5, 0), (0.0, 1), (-1e-5, 1)])
def test_the_label_is_ranked_as_in_the_error_count(margin, first):
    logits = torch.tensor([[2.0 + margin, 2.0, 1.0]])
    scores = from_averages(torch.arange(1), torch.zeros(1, dtype=torch.int64), logits.softmax(1), logits, {})
    assert (scores.softmax_ranks[0] == 0) == (first == 0)
    assert _top_labels(scores, 0).top[0] == first


def test_panel_with_a_damaged_original(evaluated_run, prepared_photos, photo_folder, tmp_path):
    """The file keeps its length, so only its content shows the damage."""
    run = collect([evaluated_run()])[0].runs[0]
    moved = Path(shutil.copytree(photo_folder, tmp_path / "moved"))
    for path in moved.glob("val/*/*"):
        path.write_bytes(bytes(path.stat().st_size))
    split = open_split(prepared_photos, "val")
    labels = torch.tensor(split.labels)
    logits = torch.nn.functional.one_hot(labels, 10).float()
    facts = {"source_fingerprint": split.source_fingerprint}
    scores = from_averages(torch.arange(len(labels)), labels, logits.softmax(1), logits, facts)
    save_scores(tmp_path / "scores.safetensors", scores)
    run.config["data"] |= {"root": str(prepared_photos), "source": str(moved), "name": "imagefolder"}
    fingerprint = split.source_fingerprint
    result = replace(run.results[0], scores=tmp_path / "scores.safetensors", source_fingerprint=fingerprint)
    assert "is no longer the file that was prepared" in panel_figure(run, result)
    run.config["data"]["source"] = str(photo_folder)
    assert "<div class=panel>" in panel_figure(run, result)
    run.manifest["data"]["classes"].pop()
    assert "names 9 classes" in panel_figure(run, result)


def test_panel_opens_only_listed_formats(evaluated_run, monkeypatch):
    """Pillow has decoders for dozens of formats; data must not choose which one runs. The digits are PNG files."""
    run = collect([evaluated_run()])[0].runs[0]
    monkeypatch.setattr(encode, "FORMATS", ("JPEG",))
    html = panel_figure(run, run.results[0])
    assert html.startswith("<p>No test images to show: not an image of a format that is read: JPEG.")


def test_panel_without_its_data(evaluated_run, tmp_path):
    run = collect([evaluated_run()])[0].runs[0]
    run.config["data"]["root"] = str(tmp_path / "<gone>")
    html = panel_figure(run, run.results[0])
    assert html.startswith("<p>No test images to show") and "&lt;gone&gt;" in html


def test_no_panel_of_scores_that_another_evaluation_has_written_since(evaluated_run):
    run = collect([evaluated_run()])[0].runs[0]
    scores = load_scores(run.results[0].scores)
    others = replace(scores, metadata=scores.metadata | {"weights_sha256": "f" * 64})
    save_scores(run.results[0].scores, others)
    (result,) = collect([run.folder])[0].runs[0].results
    html = panel_figure(run, result)
    assert html.startswith("<p>No test images to show") and "of other weights than this result" in html

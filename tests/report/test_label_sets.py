"""report.py labels=real.json: ImageNet-ReaL's sets of labels on made-up scores and a made-up file of its shape."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image
from safetensors.torch import save_file

from tencrop.config import UserError
from tencrop.data.preparation.prepare import prepare
from tencrop.data.sources.class_names import imagenet_wnids
from tencrop.data.store.manifest import open_split
from tencrop.evaluation.predictions import from_averages, save_scores
from tencrop.evaluation.score_files import count_ranks
from tencrop.report.label_sets import ranks_of_sets, read_label_sets, report_label_sets
from tencrop.report.score_sources import read_saved

# (number in the name, label, top-1 class); in the order of class folders, which is not that of the numbers
IMAGES = [(9, 0, 3), (1, 5, 700), (4, 7, 7), (2, 9, 9)]
SETS = {9: [0, 3], 1: [5, 700], 4: [], 2: [2]}  # by number


@pytest.fixture(scope="module")
def prepared(data_config, tmp_path_factory) -> Path:
    """1,000 classes with one training image each, and four val images."""
    source, buffer = tmp_path_factory.mktemp("source"), io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    wnids = imagenet_wnids()
    names = [f"train/{wnid}/{wnid}_1.JPEG" for wnid in wnids]
    names += [f"val/{wnids[label]}/ILSVRC2012_val_{number:08d}.JPEG" for number, label, _ in IMAGES]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(buffer.getvalue())
    data = replace(data_config(source, tmp_path_factory.mktemp("prepared")), subset=True)
    return prepare(data, workers=1, progress=False)


@pytest.fixture
def saved(prepared, tmp_path) -> Path:
    """Scores of the four images; the class with the most votes is IMAGES' third column."""
    split = open_split(prepared, "val")
    assert split.labels.tolist() == [label for _, label, _ in IMAGES]
    logits = torch.zeros(4, 1000)
    logits[range(4), [top for _, _, top in IMAGES]] = 5.0
    identity = {"model": "tiny", "data": "imagenet", "weights_sha256": "ab" * 32, "protocol": "{}"}
    identity["source_fingerprint"] = split.source_fingerprint
    scores = from_averages(torch.arange(4), torch.from_numpy(split.labels.copy()), logits.softmax(1), logits, identity)
    save_scores(tmp_path / "evaluations" / "tiny" / "center.safetensors", scores)
    return tmp_path / "evaluations" / "tiny" / "center.safetensors"


@pytest.fixture
def real(tmp_path) -> Path:
    """A file as published: 50,000 lists in the order of the images' names."""
    path = tmp_path / "real.json"
    path.write_text(json.dumps([SETS.get(number, [number % 1000]) for number in range(1, 50_001)]))
    return path


def test_sets_by_name_and_their_own_denominator(prepared, saved, real, tmp_path, capsys):
    """Fails for labels in the order of class folders, for one label an image, and if images without labels count."""
    out = tmp_path / "out"
    given = {"average": "softmax", "ks": [1], "output": out, "data_root": str(prepared)}
    assert report_label_sets(str(real), [str(saved)], **given) == 0
    rows = list(csv.DictReader(io.StringIO((out / "labels.csv").read_text())))
    found = [(row["percent"], row["errors"], row["images"]) for row in rows]
    assert found == [("33.33", "1", "3"), ("66.67", "2", "3"), ("50.00", "2", "4")]
    assert rows[0]["labels"].startswith("real.json (") and rows[1]["labels"] == "val's label, same images"
    text = " ".join(capsys.readouterr().out.split())
    assert "Images counted: 3 of 4. Images without a label in real.json (" in text
    assert "tiny on imagenet, center" in text and "33.33" in (out / "labels.md").read_text()


def test_the_page_has_the_same_figures(prepared, saved, real, tmp_path):
    """Each row of the CSV file stands on the page, with its counts, and so do the images without labels."""
    renamed = saved.rename(saved.with_name("<b>.safetensors"))
    out = tmp_path / "out"
    given = {"average": "softmax", "ks": [1, 5], "output": out, "data_root": str(prepared)}
    assert report_label_sets(str(real), [str(renamed)], **given) == 0
    page = (out / "labels.html").read_text()
    rows = list(csv.DictReader(io.StringIO((out / "labels.csv").read_text())))
    assert len(rows) == 6
    for row in rows:
        cells = [row[key] for key in ("labels", "error", "percent", "95% interval", "errors", "images")]
        pattern = "</td><td[^>]*>".join(re.escape(str(escape(cell))) for cell in cells)
        assert re.search(f">{pattern}</td>", page), cells
    assert re.search(r"Images counted: 3 of 4\. Images without a label in real\.json \(\w+\): 1;", page)
    assert "&lt;b&gt;.safetensors" in page and "<b>" not in page and "http" not in page.replace("http-equiv", "")


def test_all_scores_of_imagenet_are_found(prepared, saved, real, tmp_path, capsys, monkeypatch):
    content = saved.read_bytes()
    other = tmp_path / "evaluations" / "other" / "center.safetensors"
    other.parent.mkdir()
    scores = torch.rand(4, 1000)
    identity = {"data": "imagenet_v2", "source_fingerprint": "other", "weights_sha256": "ab" * 32, "protocol": "{}"}
    save_scores(other, from_averages(torch.arange(4), torch.arange(4), scores, 2 * scores, identity))
    monkeypatch.chdir(tmp_path)
    given = {"average": "logits", "ks": [1, 5], "output": tmp_path / "out", "data_root": str(prepared)}
    assert report_label_sets(str(real), [], **given) == 0
    out = capsys.readouterr().out
    assert "evaluations/tiny/center.safetensors" in out and "evaluations/other" not in out
    assert saved.read_bytes() == content, "score files are only read"
    with pytest.raises(UserError, match=r"data_root=.*: holds other images than those of .*other"):
        report_label_sets(str(real), [str(other)], **given)


def test_a_damaged_file_and_weights_beside_scores_are_left_out(
    prepared, saved, real, tmp_path, capsys, monkeypatch
) -> None:
    damaged = tmp_path / "runs" / "a" / "predictions" / "center.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(bytes(range(256)))
    save_file({"weight": torch.zeros(3)}, tmp_path / "runs" / "exported.safetensors")
    monkeypatch.chdir(tmp_path)
    given = {"average": "softmax", "ks": [1], "output": tmp_path / "out", "data_root": str(prepared)}
    assert report_label_sets(str(real), [], **given) == 2
    shown = capsys.readouterr()
    assert "evaluations/tiny/center.safetensors" in shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: left out: {damaged.relative_to(tmp_path)}: is a broken score file")
    saved.unlink()
    with pytest.raises(UserError, match="is a broken score file"):
        report_label_sets(str(real), [], **given)


def test_scores_of_a_subset_are_counted_by_the_names_of_its_images(prepared, real, tmp_path, capsys) -> None:
    """Of the images number 1 and 2; the names of the first two images of the split are of 9 and 1."""
    split, samples = open_split(prepared, "val"), torch.tensor([1, 3])
    logits = torch.zeros(2, 1000)
    logits[range(2), [700, 9]] = 5.0
    identity = {"model": "tiny", "data": "imagenet", "weights_sha256": "ab" * 32, "protocol": "{}"}
    identity |= {"source_fingerprint": "of the two", "split_fingerprint": split.source_fingerprint, "subset": "2 of 4"}
    labels = torch.from_numpy(split.labels[samples].copy())
    scores = from_averages(torch.arange(2), labels, logits.softmax(1), logits, identity, samples=samples)
    save_scores(tmp_path / "subset.safetensors", scores)
    one = read_saved(tmp_path / "subset.safetensors", "softmax", data_root=str(prepared))
    assert one.image_name(1) == split.names(3) and one.image_names == [split.names(1), split.names(3)]
    assert one.class_folders == split.manifest["classes"] and one.classes[0].startswith("tench")
    given = {"average": "softmax", "ks": [1], "output": tmp_path / "out", "data_root": str(prepared)}
    assert report_label_sets(str(real), [str(one.path)], **given) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "labels.csv").read_text())))
    assert [(row["errors"], row["images"]) for row in rows] == [("1", "2"), ("1", "2"), ("1", "2")]
    # as earlier code wrote it
    del identity["split_fingerprint"]
    save_scores(one.path, from_averages(torch.arange(2), labels, logits.softmax(1), logits, identity))
    for root in (str(prepared), None):
        with pytest.raises(UserError, match=r"does not say which images of the split it covers; run evaluate"):
            report_label_sets(str(real), [str(one.path)], **given | {"data_root": root})


def test_images_must_be_those_of_the_labels(saved, real, tmp_path, prepared_photos):
    given = {"average": "softmax", "ks": [1], "output": tmp_path / "out"}
    with pytest.raises(UserError, match=r"names of its images are not known here; give .*data_root=DIR"):
        report_label_sets(str(real), [str(saved)], **given)
    split, scores = open_split(prepared_photos, "val"), torch.rand(12, 3)
    labels = torch.from_numpy(split.labels.copy())
    identity = {"data": "imagenet", "source_fingerprint": split.source_fingerprint}
    save_scores(tmp_path / "photos.safetensors", from_averages(torch.arange(12), labels, scores, 2 * scores, identity))
    with pytest.raises(UserError, match="its classes are not ImageNet's 1,000"):
        report_label_sets(str(real), [str(tmp_path / "photos.safetensors")], **given, data_root=str(prepared_photos))
    assert not (tmp_path / "out").exists()


WRONG = {
    "one label an image": ([3] * 50_000, "not a list with a list of labels"),
    "a label of no class": ([[1000]] * 50_000, "0 to 999"),
    "too few images": ([[1]] * 10_000, "has 10,000 images, but ILSVRC2012 val has 50,000"),
    "by name": ({"ILSVRC2012_val_00000001.JPEG": [1]}, "not a list with a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_file_is_refused(tmp_path, case):
    content, message = WRONG[case]
    (tmp_path / "real.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_label_sets(tmp_path / "real.json")
    with pytest.raises(UserError, match=r"there is no such file; give real\.json of "):
        read_label_sets(tmp_path / "none.json")


def test_ranks_of_sets():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (50, 8)).astype(np.float32)  # with many ties
    labels = rng.integers(0, 8, 50)
    assert np.array_equal(ranks_of_sets(scores, labels[:, None].tolist()), count_ranks(scores, labels))
    tied = np.array([[2, 2, 1, 0]], np.float32)
    assert ranks_of_sets(tied, [[0, 1]]).tolist() == [0], "both of the tied classes are right"
    assert ranks_of_sets(tied, [[1, 3]]).tolist() == [1], "a tie with another class counts against the label"
    assert ranks_of_sets(np.array([[np.nan, 1]]), [[1]]).tolist() == [-1]

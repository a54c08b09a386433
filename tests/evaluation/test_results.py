"""result.json and the printed table."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tencrop.config import UserError
from tencrop.data.sources.imagenet_test_sets import classes_within
from tencrop.evaluation.predictions import from_averages, save_scores
from tencrop.evaluation.results import (
    differences_from_training,
    load_result,
    print_results,
    protocol_label,
    result_of,
    save_result,
)
from tencrop.report.collect import collect_evaluations
from tencrop.report.score_report import error_block, score_report
from tencrop.report.score_sources import read_saved
from tencrop.report.tables import error_rows

IDENTITY = {"protocol": "{}", "weights": "ema", "weights_sha256": "ab", "source_fingerprint": "cd", "normalization": ""}


@pytest.fixture
def result(composed):
    """A result for 4 images in 8 classes: three are correct by the softmax, two by the logits."""
    softmax, logits = torch.rand(4, 8) / 2, torch.rand(4, 8)
    labels = torch.arange(4)
    softmax[labels, labels] = torch.tensor([1.0, 1.0, 1.0, -1.0])
    logits[labels, labels] = torch.tensor([2.0, 2.0, -1.0, -1.0])
    scores = from_averages(torch.arange(4), labels, softmax, logits, IDENTITY)

    def build(*overrides: str) -> dict:
        config = composed("experiment=lenet5_digits", "protocol=five_crop", *overrides)
        return result_of(scores, config, label="lenet5 seed 0", scores="five_crop.safetensors")

    build.scores = scores  # type: ignore[attr-defined]
    return build


def test_errors_depend_on_the_chosen_average(result) -> None:
    softmax, logits = result(), result("protocol.average=logits")
    assert (softmax["top1_error"], softmax["averaging"]) == (0.25, "softmax")
    assert (logits["top1_error"], logits["averaging"]) == (0.5, "logits")
    assert softmax["top1_interval"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    assert softmax["protocol"] == "five_crop" and softmax["side"] == 36


def test_save_and_load_round_trip_and_foreign_files_are_refused(result, tmp_path: Path) -> None:
    path = tmp_path / "new" / "five_crop.result.json"
    save_result(path, result())
    assert load_result(path) == result()
    for content in ("", "{", "[]", '{"top1_error": 0}', '{"format": "another"}'):
        path.write_text(content)
        with pytest.raises(UserError, match="evaluate"):
            load_result(path)
    with pytest.raises(UserError, match="no result"):
        load_result(tmp_path / "missing.json")


CHANGES = {
    "a digit": ('"top1_error": 0.25', '"top1_error": 0.26'),
    "no images": ('"num_images": 4', '"num_images": 0'),
    "an error above 1": ('"top1_error": 0.25', '"top1_error": 7.5'),
    "a type": ('"num_images": 4', '"num_images": "four"'),
    "a fact": ('"weights": "ema"', '"weights": "raw"'),
    "no digest": ('"sha256": "', '"sha257": "'),
    "a digest": ('"sha256": "', '"sha256": "0'),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_changed_result_is_refused(result, tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "five_crop.result.json"
    save_result(path, result())
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=r"five_crop\.result\.json: is damaged.*run evaluate\.py again"):
        load_result(path)


def unsigned(path: Path, **changes) -> None:
    """Turn a result into one of earlier code, which had no digest."""
    facts = json.loads(path.read_text()) | {"format": "tencrop result 1"} | changes
    del facts["sha256"]
    path.write_text(json.dumps(facts))


@pytest.fixture
def saved(result, tmp_path: Path):
    """saved("protocol.average=logits"): the path of a result with its score file beside it."""

    def save(*overrides: str) -> Path:
        path = tmp_path / "five_crop.result.json"
        facts = result(*overrides)
        save_scores(tmp_path / facts["scores"], result.scores)
        save_result(path, facts)
        return path

    return save


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_a_result_must_match_its_scores(saved, average: str) -> None:
    path = saved(f"protocol.average={average}")
    facts = load_result(path)
    unsigned(path)
    assert load_result(path) == facts | {"format": "tencrop result 1"}
    wrong = {"top1_error": 0.0, "top5_error": 7.5, "num_images": 5, "top1_interval": [0.0, 0.0]}
    for key, value in wrong.items():
        save_result(path, facts | {key: value})  # with a digest for the changed content
        with pytest.raises(UserError, match=r"its errors are not those of five_crop\.safetensors beside it"):
            load_result(path)
        unsigned(path)
        with pytest.raises(UserError, match=r"its errors are not those of five_crop\.safetensors beside it"):
            load_result(path)


def test_without_scores_a_result_needs_a_digest(saved, result, tmp_path: Path) -> None:
    path = saved()
    facts = load_result(path)
    other = {**IDENTITY, "weights_sha256": "trained further"}
    save_scores(tmp_path / "five_crop.safetensors", replace(result.scores, metadata=other))
    for _ in range(2):  # the scores of other weights, and none
        save_result(path, facts)
        assert load_result(path) == facts
        unsigned(path)
        with pytest.raises(UserError, match="has no digest, and no scores beside it to count from"):
            load_result(path)
        (tmp_path / "five_crop.safetensors").unlink(missing_ok=True)


def test_the_table_shows_percent_and_intervals(result) -> None:
    console = Console(file=io.StringIO(), width=120)
    print_results([result()], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    row = next(line for line in text.splitlines() if "lenet5 seed 0 (EMA)" in line)
    for cell in ("five_crop 32 of 36 px, softmax", "25.00", "4.56–69.94", " 4"):
        assert cell in row, (cell, text)


def test_a_label_tells_how_the_image_was_resized(result) -> None:
    warped = result("protocol.resize=warp", "protocol.side=[40,44]")
    assert protocol_label(warped) == "five_crop 32 of 40, 44 px, stretched, softmax"
    del warped["resize"]  # as in a result of earlier code
    assert protocol_label(warped) == "five_crop 32 of 40, 44 px, softmax"
    central = warped | {"protocol": "center", "views": 1, "resize": "central_fraction", "side": None}
    assert protocol_label(central) == "center 32 of the central 87.5%, stretched"


def test_a_named_pipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "center.result.json")
    monkeypatch.setattr(Path, "read_text", lambda _: pytest.fail("it would be waited for"))
    with pytest.raises(UserError, match="is no result of evaluate"):
        load_result(tmp_path / "center.result.json")


@pytest.fixture
def imagenet_a(composed, tmp_path: Path) -> Path:
    """A result on three images of ImageNet-A: right among all classes, right among its own only, and wrong."""
    own = torch.from_numpy(classes_within("imagenet_a"))
    other = next(label for label in range(1000) if label not in own)
    labels, logits = own[[0, 3, 7]], torch.zeros(3, 1000)
    logits[range(3), labels] = torch.tensor([3.0, 2.0, 1.0])
    logits[1, other], logits[2, own[8]] = 5.0, 5.0
    identity = IDENTITY | {"data": "imagenet_a", "protocol": "{}"}
    scores = from_averages(torch.arange(3), labels, logits.softmax(1), logits, identity)
    save_scores(tmp_path / "center.safetensors", scores)
    config = composed("model=resnet50", "data=imagenet_a", "protocol=center")
    facts = {"label": "a.pth", "selection": None, "model": "resnet50"}
    save_result(tmp_path / "center.result.json", result_of(scores, config, scores="center.safetensors", **facts))
    return tmp_path / "center.result.json"


def test_both_errors_of_imagenet_a(imagenet_a: Path) -> None:
    """Published numbers are of its 200 classes; the error over 1,000 classes is another, higher one."""
    result = load_result(imagenet_a)
    assert result["within_classes"]["num_classes"] == 200 and result["num_classes"] == 1000
    assert (result["within_classes"]["top1_error"], result["top1_error"]) == (1 / 3, 2 / 3)
    assert result["within_classes"]["num_images"] == result["num_images"] == 3
    console = Console(file=io.StringIO(), width=140)
    print_results([result], console)
    _, within, over_all = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "a.pth (EMA) on imagenet_a" in within and "among its 200 classes" in within and " 33.33 " in within
    assert "a.pth (EMA) on imagenet_a" in over_all and "among all 1,000 classes" in over_all and " 66.67 " in over_all


def test_errors_within_classes_are_counted_again(imagenet_a: Path) -> None:
    facts = load_result(imagenet_a)
    for within in ({**facts["within_classes"], "top1_error": 0.0}, None):
        save_result(imagenet_a, facts | {"within_classes": within})  # with a digest for the changed content
        with pytest.raises(UserError, match=r"its errors are not those of center\.safetensors beside it"):
            load_result(imagenet_a)


def test_the_report_names_data_and_classes(imagenet_a: Path) -> None:
    rows = error_rows([], collect_evaluations([imagenet_a.parent]))
    assert [(row.k, row.measured.mean) for row in rows if row.measured] == [
        (1, pytest.approx(100 / 3)), (5, 0.0), (1, pytest.approx(200 / 3)), (5, 0.0)
    ]  # fmt: skip
    assert all(row.experiment == "a.pth (resnet50 on imagenet_a)" for row in rows)
    assert "among its 200 classes" in rows[0].protocol and "among all 1,000 classes" in rows[2].protocol
    report = score_report(read_saved(imagenet_a.with_name("center.safetensors"), "logits"), [1])
    cells = [(row[0], row[1]) for row in error_block(report).rows]
    assert cells == [("top-1 among its own classes", "33.33"), ("top-1 among all 1,000 classes", "66.67")]


def test_a_test_set_in_the_folder_of_a_run_is_named() -> None:
    config = {"data": {"name": "imagenet"}, "augmentation": {}, "training": {}}
    assert differences_from_training({"data": "imagenet"}, config) == []
    assert differences_from_training({"data": "imagenet_v2"}, config) == ["data imagenet_v2"]


def test_the_mean_image_is_no_difference_from_a_training_with_it():
    config = {"augmentation": {}, "training": {}, "normalization": {"mean": "image"}, "data": {"name": "imagenet"}}
    result = {"data": "imagenet", "mean": [124.0, 114.0, 101.0]}
    assert differences_from_training(result | {"mean_image_sha256": "ab"}, config) == []
    assert differences_from_training(result, config) == ["mean [124.0, 114.0, 101.0]"]

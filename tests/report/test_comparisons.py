"""Figures that compare experiments are drawn if, and only if, the runs have the numbers for them."""

import dataclasses
import json
import re

import yaml

from tencrop.complexity.networks import model_file
from tencrop.evaluation.results import load_result, save_result
from tencrop.records.run_folder import read_run_manifest
from tencrop.report.collect import collect, collect_evaluations
from tencrop.report.comparisons import draw_comparisons, families
from tencrop.report.page import write_report
from tencrop.visualization.record import load_record


def test_training_errors_of_one_network_on_the_same_data_are_drawn(evaluated_run, tmp_path):
    folders = [evaluated_run("name=a"), evaluated_run("name=b", "optimizer.lr=0.5")]
    evaluated_run("name=other", "model=lenet5_dense")
    experiments = collect([tmp_path / "runs"])
    assert [[one.name for one in family] for family in families(experiments)] == [["a", "b"]]
    html, markdown = write_report(experiments, tmp_path / "report")
    assert len(re.findall("<b>Training error.</b>", html.read_text())) == 1
    assert "](figures/training_error-lenet5-digits.svg)" in markdown.read_text()
    caption = load_record(tmp_path / "report" / "figures" / "training_error-lenet5-digits.json").caption
    assert "a: " in caption and "b: " in caption and "epochs to 25%" in caption
    (folders[1] / "metrics.jsonl").unlink()
    assert draw_comparisons(collect([tmp_path / "runs"]), [], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def of_imagenet(folder, composed) -> None:
    """Turn the run into one of ResNet-50 on ImageNet, which tables print an error of."""
    config = dataclasses.asdict(composed("model=resnet50"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = read_run_manifest(folder)
    del manifest["config_sha256"]  # the configuration is another one now
    for split, num_images in (("train", 1_281_167), ("val", 50_000)):
        manifest["data"]["splits"][split]["num_samples"] = num_images
    manifest["data"] |= {"name": "imagenet", "classes": ["c"] * 1000}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_claimed_and_measured_errors_are_drawn(evaluated_run, loose_result, composed, tmp_path):
    folder = evaluated_run()
    assert draw_comparisons(collect([folder]), [], tmp_path / "digits") == [], "the figure shows ImageNet only"
    of_imagenet(folder, composed)
    (svg,) = draw_comparisons(collect([folder]), [], tmp_path / "claimed")
    assert "claimed by these experiments" in svg.read_text() and "measured here" not in svg.read_text()
    kwargs = json.dumps(model_file("resnet50")[0].kwargs)
    measured = {"data": "imagenet", "model": "resnet50", "model_kwargs": kwargs, "size": 224, "checkpoint": "w.pth"}
    loose = loose_result(folder, label="w.pth", **measured)  # 500 images in 10 classes
    assert draw_comparisons([], collect_evaluations([loose]), tmp_path / "few") == []
    measured |= {"num_images": 50_000, "num_classes": 1000}
    loose = loose_result(folder, label="w.pth", **measured)
    (svg,) = draw_comparisons([], collect_evaluations([loose]), tmp_path / "measured")
    assert "measured here" in svg.read_text() and "claimed by these experiments" not in svg.read_text()


def test_an_unfinished_run_has_measured_nothing(evaluated_run, composed, tmp_path):
    folder = evaluated_run()
    of_imagenet(folder, composed)
    path = folder / "predictions" / "center.result.json"
    facts = load_result(path)
    (folder / "predictions" / "center.safetensors").unlink()
    kwargs = json.dumps(model_file("resnet50")[0].kwargs)
    measured = {"data": "imagenet", "model": "resnet50", "model_kwargs": kwargs, "size": 224}
    save_result(path, facts | measured | {"num_images": 50_000, "num_classes": 1000})
    for status in ("complete", "interrupted"):
        manifest = read_run_manifest(folder)
        manifest["result"]["status"] = status
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (svg,) = draw_comparisons(collect([folder]), [], tmp_path / status)
        assert "claimed by these experiments" in svg.read_text()
        assert ("measured here" in svg.read_text()) == (status == "complete")

"""Printed values become points as printed; the figure holds them all."""

import json

import pytest
import yaml

from tencrop.complexity.golden import golden_counts
from tencrop.config.verbs import CONF
from tencrop.seeing.drawing import save_figure
from tencrop.seeing.record import Record
from tencrop.seeing.tradeoff import PUBLISHED, measured, published, tradeoff_figure

COUNTS = {
    "small": {"image_size": 224, "mult_adds": 1_000_000_000, "parameters": 5_000_000},
    "large": {"image_size": 224, "mult_adds": 4_000_000_000, "parameters": 25_000_000},
}


def test_accuracies_become_errors(tmp_path) -> None:
    path = tmp_path / "published.yaml"
    entry = {"name": "A", "unit": "accuracy", "protocol": "center", "confidence": "paper", "source": "B 2020"}
    path.write_text(yaml.safe_dump([entry | {"values": {"large": 76.5, "small": 70.25}}]))
    (series,) = published(COUNTS, path)
    assert [(point.model, point.top1_error, point.mult_adds) for point in series.points] == [
        ("small", 29.75, 1_000_000_000),
        ("large", 23.5, 4_000_000_000),
    ]


def test_the_committed_values() -> None:
    """Every network has a model file; the numbers are percent, in the unit that is named."""
    entries = yaml.safe_load(PUBLISHED.read_text())
    known = {"source material", "paper", "authors' code", "third party"}
    for entry in entries:
        assert set(entry) == {"name", "unit", "protocol", "confidence", "source", "values"}
        assert entry["confidence"] in known
        for model, value in entry["values"].items():
            assert (CONF / "model" / f"{model}.yaml").exists(), model
            assert (15 < value < 50) if entry["unit"] == "error" else (50 < value < 90), (model, value)
    series = {one.name: one for one in published(golden_counts())}
    (alexnet,) = series["AlexNet"].points
    assert (alexnet.top1_error, alexnet.parameters) == (40.7, 60_965_224)
    assert [point.top1_error for point in series["MobileNet"].points] == pytest.approx([49.4, 36.3, 31.6, 29.4])


def test_measured_results_of_imagenet_only(tmp_path) -> None:
    folder = tmp_path / "run" / "predictions"
    folder.mkdir(parents=True)
    results = [
        {"data": "imagenet", "model": "small", "size": 224, "top1_error": 0.3},
        {"data": "digits", "model": "small", "size": 224, "top1_error": 0.01},
        {"data": "imagenet", "model": "small", "size": 128, "top1_error": 0.4},
        {"data": "imagenet", "model": "unknown", "size": 224, "top1_error": 0.5},
    ]
    for number, result in enumerate(results):
        (folder / f"{number}.result.json").write_text(json.dumps(result))
    (point,) = measured(tmp_path, COUNTS)
    assert (point.model, point.top1_error, point.parameters) == ("small", 30.0, 5_000_000)
    assert measured(tmp_path / "nothing", COUNTS) == []


def test_the_figure_names_every_series(tmp_path, texts_of) -> None:
    series = published(golden_counts())
    svg, _ = save_figure(tradeoff_figure(series), tmp_path, "tradeoff", Record("", "", ""))
    texts = texts_of(svg)
    assert {one.name for one in series} <= set(texts) and "measured here" not in texts
    assert "Top-1 error on ImageNet against multiply-adds" in texts
    svg, _ = save_figure(tradeoff_figure(series, series[0].points), tmp_path, "own", Record("", "", ""))
    assert "measured here" in texts_of(svg)

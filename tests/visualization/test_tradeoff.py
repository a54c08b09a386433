"""Published errors become points unchanged; the figure contains every series."""

import json

import pytest
import yaml

from tencrop.cli.choices import CONF
from tencrop.complexity.golden import golden_counts
from tencrop.complexity.networks import model_file
from tencrop.tables.reading import read_rows
from tencrop.visualization.drawing import save_figure
from tencrop.visualization.record import Record
from tencrop.visualization.tradeoff import PUBLISHED, measured, published, tradeoff_figure

COUNTS = {
    "vgg_a": {"image_size": 224, "mult_adds": 1_000_000_000, "parameters": 5_000_000},
    "vgg_b": {"image_size": 224, "mult_adds": 4_000_000_000, "parameters": 25_000_000},
}


def test_accuracies_become_errors(tmp_path) -> None:
    table = yaml.safe_load((CONF / "errors" / "swin.yaml").read_text())
    (tmp_path / "errors").mkdir()
    values = {"vgg_b": "76.5", "vgg_a": "70.25"}
    table["rows"] = [
        {"id": id, "row": id, "model": id, "top1": printed, "cannot": "made up"} for id, printed in values.items()
    ]
    (tmp_path / "errors" / "printed.yaml").write_text(yaml.safe_dump(table))
    path = tmp_path / "published.yaml"
    path.write_text("[{name: A, rows: [printed.vgg_b, printed.vgg_a]}]")
    (series,) = published(COUNTS, path, tmp_path / "errors")
    assert [(point.model, point.top1_error, point.mult_adds) for point in series.points] == [
        ("vgg_a", 29.75, 1_000_000_000),
        ("vgg_b", 23.5, 4_000_000_000),
    ]


def test_the_committed_values() -> None:
    """Every network has a model file; the file of series names rows of tables and has no numbers of its own."""
    entries = yaml.safe_load(PUBLISHED.read_text())
    for entry in entries:
        assert set(entry) == {"name", "rows"}
        assert all(isinstance(reference, str) and reference.count(".") == 1 for reference in entry["rows"])
        for _, row in read_rows(entry["rows"]):
            assert row.model is not None, row
    series = {one.name: one for one in published(golden_counts())}
    (alexnet,) = series["AlexNet"].points
    assert (alexnet.top1_error, alexnet.parameters) == (40.7, 60_965_224)
    assert [point.top1_error for point in series["MobileNet"].points] == pytest.approx([49.4, 36.3, 31.6, 29.4])


def result_of(model: str, **changes) -> dict:
    """The keys of result.json that measured() reads."""
    kwargs = json.dumps(model_file(model)[0].kwargs)
    usual = {"data": "imagenet", "model": model, "model_kwargs": kwargs, "size": 224, "top1_error": 0.25}
    return usual | {"checkpoint": "last.ckpt", "num_images": 50_000, "num_classes": 1000} | changes


def test_measured_results_of_imagenet_whose_costs_are_known() -> None:
    counts = golden_counts()
    results = [
        result_of("resnet50"),
        result_of("resnet50", data="digits"),
        result_of("resnet50", num_images=1000),  # of simulated archives
        result_of("resnet50", num_classes=100),
        result_of("resnet50", size=288),
        result_of("resnet50", model_kwargs='{"width": 2}'),
        result_of("resnet50") | {"model": "unknown"},
        result_of("resnet50", checkpoint=["a.ckpt", "b.ckpt"]),
        result_of("resnet50", changed_normalization=["mean"]),
    ]
    (point,) = measured(results, counts)
    assert (point.model, point.top1_error, point.parameters) == ("resnet50", 25.0, 25_557_032)


def test_a_blurred_network_costs_more() -> None:
    """By nine multiply-adds for each input of the convolutions that ffcv-imagenet blurs."""
    counts = golden_counts()
    plain, blurred = measured([result_of("resnet50"), result_of("resnet50", blur_pool="true")], counts)
    maps = ((128, 56), (256, 56), (256, 28), (512, 28), (512, 14), (1024, 14))  # conv2 and the shortcut of three stages
    assert blurred.mult_adds - plain.mult_adds == sum(9 * channels * side**2 for channels, side in maps)
    assert blurred.parameters == plain.parameters


def test_the_figure_names_every_series(tmp_path, texts_of) -> None:
    series = published(golden_counts())
    svg, _ = save_figure(tradeoff_figure(series), tmp_path, "tradeoff", Record("", "", ""))
    texts = texts_of(svg)
    assert {one.name for one in series} <= set(texts) and "measured here" not in texts
    assert "Top-1 error on ImageNet against multiply-adds" in texts
    svg, _ = save_figure(tradeoff_figure(series, series[0].points), tmp_path, "own", Record("", "", ""))
    assert "measured here" in texts_of(svg) and "claimed by these experiments" not in texts_of(svg)
    svg, _ = save_figure(tradeoff_figure(series, claims=series[0].points), tmp_path, "claim", Record("", "", ""))
    assert "claimed by these experiments" in texts_of(svg)

"""Charts: every line drawn within its frame, long lines averaged, logarithmic axes without zeros."""

import base64
import json
import math
import re
from xml.etree import ElementTree

import pytest

from tencrop.report.collect import collect
from tencrop.report.curves import HEIGHT, WIDTH, Line, chart_svg, curves, thinned
from typed import present

SVG = "{http://www.w3.org/2000/svg}"


def svg_of(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(base64.b64decode(re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)[0]))


def drawn_lines(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [group for group in svg.iter(f"{SVG}g") if re.fullmatch(rf"{kind}-\d+", group.get("id", ""))]


def labels(svg: ElementTree.Element) -> list[str]:
    return [present(text.text) for text in svg.iter(f"{SVG}text")]


def test_long_lines_are_averaged():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    short = thinned(points, most=100)
    assert len(short) == 100 and all(y == 0.5 for _, y in short)
    assert thinned(points[:50], most=100) == points[:50]


@pytest.mark.parametrize("is_log", [False, True])
def test_lines_stay_in_the_frame(is_log):
    line = Line([(epoch / 4, 2 * math.exp(-epoch)) for epoch in range(1, 60)], "test", "a & b")
    svg = ElementTree.fromstring(chart_svg([line], is_log=is_log))
    assert svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    ((path,),) = drawn_lines(svg, "test")
    points = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path.get("d", ""))
    assert len(points) > 10
    for x, y in points:
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_ticks_are_round_and_end_above_the_line():
    svg = ElementTree.fromstring(chart_svg([Line([(0.0, 87.0), (30.0, 12.0)], "train", "")]))
    assert labels(svg) == ["0", "10", "20", "30", "0", "20", "40", "60", "80", "100"]


def test_a_logarithmic_axis_leaves_out_zeros_and_what_lies_too_low():
    rates = [(0.0, 0.0), (1.0, 0.1), (2.0, 0.01), (3.0, 1e-9)]
    svg = ElementTree.fromstring(chart_svg([Line(rates, "train", "")], is_log=True))
    assert labels(svg)[-2:] == ["0.01", "0.1"] and len(drawn_lines(svg, "train")) == 1


@pytest.mark.parametrize("points", [[(1.0, 0.5)], [(0.0, 0.0)], [(1.0, 0.0), (2.0, 0.0)]])
def test_a_line_of_one_point_or_of_zeros_is_drawn(points):
    svg = ElementTree.fromstring(chart_svg([Line(points, "test", "")]))
    assert len(drawn_lines(svg, "test")) == 1


def test_browsers_without_matplotlibs_font_take_a_sans_serif():
    assert "font-family: 'DejaVu Sans', sans-serif" in chart_svg([Line([(1.0, 0.5)], "test", "")]).decode()


def test_the_same_lines_give_the_same_bytes():
    line = Line([(1.0, 0.5), (2.0, 0.25)], "test", "")
    assert chart_svg([line]) == chart_svg([line])


def test_three_charts_with_a_line_for_each_seed_and_split(evaluated_run, tmp_path):
    evaluated_run("seed=0")
    evaluated_run("seed=1")
    (experiment,) = collect([tmp_path / "runs"])
    charts = curves(experiment)
    assert [html.split("figcaption>")[1][:4] for html in charts] == ["Top-", "Loss", "Lear"]
    assert [len(drawn_lines(svg_of(html), "train")) for html in charts] == [2, 2, 2]
    assert [len(drawn_lines(svg_of(html), "test")) for html in charts] == [2, 2, 0]
    assert 'alt="Loss: train, seed 0; train, seed 1; val, seed 0; val, seed 1"' in charts[1]


def test_errors_of_mixed_images_say_what_they_count(evaluated_run, tmp_path):
    folder = evaluated_run()
    (experiment,) = collect([tmp_path / "runs"])
    words = "in training against the dominant of two mixed labels"
    assert not any(words in html for html in curves(experiment))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mixed = [row | {"labels": "heavier"} if row["split"] == "train" else row for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    (experiment,) = collect([tmp_path / "runs"])
    assert [f"{words}</figcaption>" in html for html in curves(experiment)] == [True, False, False]


def test_run_without_metrics(evaluated_run):
    folder = evaluated_run()
    (folder / "metrics.jsonl").unlink()
    assert curves(collect([folder])[0]) == []

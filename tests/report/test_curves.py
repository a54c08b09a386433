"""Charts: round ticks, epochs from steps, every line drawn within its frame."""

import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tencrop.report.collect import collect
from tencrop.report.curves import HEIGHT, WIDTH, Line, chart, curves, thinned, ticks


@given(low=st.floats(0, 1e4), size=st.floats(1e-6, 1e6), at_most=st.integers(2, 8))
def test_ticks_span_the_range(low, size, at_most):
    found = ticks(low, low + size, at_most)
    assert found[0] <= low + 1e-6 * size and found[-1] >= (low + size) * (1 - 1e-9) - 1e-6 * size
    assert 2 <= len(found) <= at_most + 3


def test_ticks_are_round():
    assert ticks(0, 87, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 0.1, 5) == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert ticks(3, 3, 5)[0] <= 3 <= ticks(3, 3, 5)[-1]


def test_long_lines_are_averaged():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    short = thinned(points, most=100)
    assert len(short) == 100 and all(y == 0.5 for _, y in short)
    assert thinned(points[:50], most=100) == points[:50]


@pytest.mark.parametrize("is_log", [False, True])
def test_lines_stay_in_the_frame(is_log):
    line = Line([(epoch / 4, 2 * math.exp(-epoch)) for epoch in range(1, 60)], "test", "a & b")
    svg = ElementTree.fromstring(re.sub(r"=([a-z]+)([ >])", r'="\1"\2', chart([line], is_log=is_log)))
    (polyline,) = svg.iter("polyline")
    for point in polyline.attrib["points"].split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert polyline.find("title").text == "a & b"


def test_three_charts_with_a_line_for_each_seed_and_split(evaluated_run, tmp_path):
    evaluated_run("seed=0")
    evaluated_run("seed=1")
    (experiment,) = collect([tmp_path / "runs"])
    html = curves(experiment)
    assert html.count("<svg") == 3
    assert html.count("<polyline class=test") == 4 and html.count("<polyline class=train") == 6


def test_errors_of_mixed_images_say_what_they_count(evaluated_run, tmp_path):
    folder = evaluated_run()
    (experiment,) = collect([tmp_path / "runs"])
    assert "heavier" not in curves(experiment)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mixed = [row | {"labels": "heavier"} if row["split"] == "train" else row for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    (experiment,) = collect([tmp_path / "runs"])
    assert curves(experiment).count("in training against the heavier of two mixed labels") == 1


def test_run_without_metrics(evaluated_run):
    folder = evaluated_run()
    (folder / "metrics.jsonl").unlink()
    assert curves(collect([folder])[0]) == ""

"""A network's table in four forms: exact where it is data, within 100 columns on the terminal."""

import csv
import io
import json

import pytest

from tencrop.complexity import render
from tencrop.complexity.count import Complexity
from tencrop.complexity.networks import complexity_of_file


@pytest.fixture(scope="module")
def alexnet() -> Complexity:
    return complexity_of_file("alexnet_2012")


def test_the_terminal_shows_the_papers_terms(alexnet):
    lines = render.terminal_table("alexnet_2012", alexnet, all_layers=False).splitlines()
    assert lines[0] == "alexnet_2012, 224 × 224 pixels"
    assert lines[1].split() == ["layer", "output", "type", "groups", *render.HEADS[4:]]
    assert lines[4].split() == [
        "features.conv2", "27×27×256", "5×5/1", "2", "307.5K", "223.9M", "186.6K", "224.1M", "51", "8", "-16",
    ]  # fmt: skip
    assert "60.97M" in next(line for line in lines if line.startswith("total"))


@pytest.mark.parametrize("name", ["googlenet_2014", "inception_v3_aux", "densenet264", "swin_tiny_patch4_window7_224"])
def test_it_fits_100_columns(name):
    text = render.terminal_table(name, complexity_of_file(name), all_layers=True)
    assert max(len(line) for line in text.splitlines()) <= render.WIDTH
    assert all(line == line.rstrip() for line in text.splitlines())


def test_json_and_csv_are_exact_and_sum_to_the_totals(alexnet):
    data = json.loads(render.json_text("alexnet_2012", alexnet, all_layers=True))
    rows = list(csv.DictReader(io.StringIO(render.csv_table(alexnet, all_layers=True))))
    assert data["parameters"] == 60_965_224 == sum(int(row["parameters"]) for row in rows)
    assert data["mult_adds"] == 724_406_816 == sum(layer["mult_adds"] for layer in data["layers"])
    assert tuple(rows[0]) == render.COLUMNS and rows[0]["center"] == "5"


def test_markdown_has_as_many_cells_in_every_row(alexnet):
    text = render.markdown_table("alexnet_2012", alexnet, all_layers=False)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {len(render.COLUMNS) + 1}
    assert "| 60,965,224 | 724,406,816 | 659,272 |" in rows[-1]


def test_the_short_table_states_what_it_omits():
    found = complexity_of_file("googlenet_2014")
    assert "Not counted: 6,379,728 parameters" in render.terminal_table("", found, all_layers=False)
    found = complexity_of_file("resnet18")
    short, long = (render.terminal_table("", found, all_layers=choice) for choice in (False, True))
    assert "9,600 of the parameters belong to normalization" in short and " bn1" not in short
    assert "belong to" not in long and "\nbn1 " in long


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (99_999, "99,999"), (100_000, "100.0K"), (15_470_264_320, "15.47G"), (999_950, "1000K")],
)
def test_short_numbers(number, words):
    assert render.short(number) == words

"""Published tables of sizes against our networks: every difference is explained by valid arithmetic."""

import json

import pytest

from tencrop.cli.choices import CONF
from tencrop.complexity import published
from tencrop.complexity.published import ABOUT, BELOW, CONTRADICTED, CUT, DIFFERS, EXPLAINED, MATCH
from tencrop.config import Printed, PrintedTable, UserError
from tencrop.config.build import build
from tencrop.config.yaml_files import read_yaml_file

# Printed numbers whose difference is explained by no arithmetic of their own: a new one is a decision
CONTRADICTED_ROWS = {
    "densenet_table1": ["264 layers with weights"],
    "efficientnet_table2": ["B4 mult_adds", "B5 mult_adds"],
    "googlenet_table1": [
        *(f"{module} weights" for module in ("4a", "4b", "4c", "4d", "4e", "5a", "5b")),
        "lecture parameters",
    ],
    "inception": [
        "BN-Inception (2015, section 4.2) parameters",
        "Inception-v3 mult_adds",
        "Inception-v3 (MobileNet, table 10) parameters",
        "Inception-v3 (MobileNet, table 10) mult_adds",
    ],
    "mobilenet_slim": ["0.25-192 mult_adds"],
    "mobilenet_tables": ["GoogleNet (table 8) mult_adds", "last depthwise (table 1) stride"],
    "size_comparison": ["LeNet (1998) connections connections"],
    "transformers": [
        "ConvNeXt-B 384 mult_adds",
        "ConvNeXt-T (ConvNeXt, table 10) mult_adds",
        "Swin-T (ConvNeXt, table 10) mult_adds",
    ],
}
TABLES = sorted(path.stem for path in (CONF / "sizes").glob("*.yaml"))


def load(name) -> PrintedTable:
    return build(PrintedTable, read_yaml_file(CONF / "sizes" / f"{name}.yaml"))


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_is_ours_or_its_difference_is_explained(name):
    table = load(name)
    comparisons = published.compare(table)
    assert [f"{c.printed.row} {c.quantity}" for c in comparisons if not c.is_settled] == []
    contradicted = [f"{c.printed.row} {c.quantity}" for c in comparisons if c.verdict == CONTRADICTED]
    assert contradicted == CONTRADICTED_ROWS.get(name, [])
    for render in published.FORMATS.values():
        assert render(table, comparisons)
    assert len(json.loads(published.json_text(table, comparisons))["rows"]) == len(table.rows)


def compare(**row):
    printed = Printed(**{"row": "row", "model": "lenet5_dense", "quantity": "parameters", **row})
    (comparison,) = published.compare(PrintedTable("", "", None, None, [printed]))
    return comparison.verdict


PARAMETERS = "156 + 2416 + 48120 + 10164 + 850"  # 61,706


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"value": "61,706"}, MATCH),
        ({"value": "61.7", "unit": "K"}, MATCH),
        ({"value": "62", "unit": "K"}, MATCH),
        ({"value": "61", "unit": "K"}, CUT),
        ({"value": "60", "unit": "K"}, DIFFERS),
        ({"value": "60", "unit": "K", "step": 5}, MATCH),
        ({"value": "60", "unit": "Ki"}, MATCH),
        ({"value": "~60", "unit": "K"}, ABOUT),
        ({"value": "~58", "unit": "K"}, DIFFERS),
        ({"value": "<62", "unit": "K"}, BELOW),
        ({"value": "<61", "unit": "K"}, DIFFERS),
        ({"value": "60,000", "because": "x", "ours_as": PARAMETERS, "printed_as": "6 * 10**4"}, EXPLAINED),
        ({"value": "60,000", "because": "x", "ours_as": PARAMETERS}, CONTRADICTED),
        ({"value": "60,000", "because": "x"}, DIFFERS),
        ({"value": "60,000", "ours_as": PARAMETERS}, DIFFERS),
        ({"value": "60,000", "because": "x", "ours_as": "61705"}, DIFFERS),
        ({"value": "60,000", "because": "x", "ours_as": PARAMETERS, "printed_as": "59999"}, DIFFERS),
        ({"value": "28×28×6", "quantity": "output", "layers": "c1"}, MATCH),
        ({"value": "27×27×6", "quantity": "output", "layers": "c1"}, DIFFERS),
        ({"value": "28×28×22", "quantity": "joined", "layers": "c1 c3"}, DIFFERS),
        ({"value": "10×10×22", "quantity": "joined", "layers": "c1 c3"}, MATCH),
        ({"value": "3,072", "quantity": "input"}, MATCH),
    ],
)
def test_verdicts(row, verdict):
    assert compare(**row) == verdict


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"value": "1", "model": "lenet9"}, "model=lenet9: there is no conf/model/lenet9.yaml"),
        ({"value": "1", "layers": "c9"}, "layers=c9: lenet5_dense has no such layer"),
        ({"value": "1", "quantity": "neurons"}, "quantity=neurons: must be one of"),
        ({"value": "1", "unit": "m"}, "unit=m: must be one of"),
        ({"value": "many"}, "value=many: is not a number"),
    ],
)
def test_an_invalid_row_is_refused(row, words):
    with pytest.raises(UserError, match=words):
        compare(**row)


def test_arithmetic_accepts_only_integers():
    assert published.evaluate("2 * (3 + 4)**2 - 7 // 2") == 95
    for text in ("1.5", "__import__('os')", "2 +", "a"):
        with pytest.raises(UserError, match="arithmetic"):
            published.evaluate(text)

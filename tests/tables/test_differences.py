"""Differences over seeds, compared with SciPy's paired t interval, and their verdicts beside printed differences."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind, ttest_rel

from tencrop.config import UserError
from tencrop.tables.differences import difference
from tencrop.tables.lines import Line, Measurement, folders_text, lines_of
from tencrop.tables.reading import read_table, with_bases
from tencrop.tables.render import csv_table, latex_table, markdown_table, terminal_table
from typed import present

BASE = {0: 52.4, 1: 49.2, 2: 49.8, 3: 49.0, 4: 47.2}
VARIANT = {0: 49.4, 1: 50.2, 2: 51.8}


def test_shared_seeds_are_paired() -> None:
    found = difference(VARIANT, BASE)
    expected = ttest_rel(list(VARIANT.values()), [BASE[seed] for seed in VARIANT]).confidence_interval()
    assert found.is_paired and found.num_seeds == 3
    assert found.mean - present(found.half_width) == pytest.approx(expected.low)
    assert found.mean + present(found.half_width) == pytest.approx(expected.high)
    assert difference(BASE, VARIANT).mean == -found.mean


def test_other_seeds_are_compared_by_their_means() -> None:
    others = {seed + 3: error for seed, error in VARIANT.items()}  # seeds 3, 4 and 5: one is not the base's
    found = difference(others, BASE)
    test = ttest_ind(list(others.values()), list(BASE.values()), equal_var=False)
    assert not found.is_paired and found.mean == pytest.approx(50.4667 - 49.52, abs=1e-4)
    # the same standard error as Welch's, with fewer degrees of freedom
    assert found.mean / (present(found.std) / 3**0.5) == pytest.approx(test.statistic)
    assert present(found.half_width) > (test.confidence_interval().high - test.confidence_interval().low) / 2


def test_the_interval_decides_whether_a_difference_exceeds_the_seeds() -> None:
    assert difference(VARIANT, BASE).exceeds_seeds is False
    assert difference({seed: error + 19 for seed, error in VARIANT.items()}, BASE).exceeds_seeds is True
    assert difference({0: 60.0}, BASE).half_width is None and difference({0: 60.0}, BASE).exceeds_seeds is None
    assert difference({9: 60.0}, BASE).mean == pytest.approx(60 - 49.52)


def _ours(errors: dict[int, float], hash: str = "0123abcd", refused: str | None = None) -> Measurement:
    values = tuple(errors.values())
    folders = tuple(Path(f"runs/net/seed{seed}-{hash}") for seed in errors)
    return Measurement({1: values, 5: values}, 500, folders, refused, seeds=tuple(errors))


@pytest.fixture
def lines(write_table: Callable[..., Path]) -> Callable[..., list[Line]]:
    """lines(ours, base, top1="+1.4"): a base row and a row that is its difference."""

    def build(
        matched: dict[str, Measurement], *, unit: str = "error", base: str | None = "50", **changes: Any
    ) -> list[Line]:
        rows = [
            {"id": "base", "row": "Base", "top1": base, "experiment": "lenet5_digits"},
            {"id": "less", "row": "Less", "delta_of": "base", "experiment": "lenet5_digits"} | changes,
        ]
        table = read_table("digits", write_table(rows=rows, columns=["top1"], unit=unit))
        return lines_of(table, {("digits", row): ours for row, ours in matched.items()})

    return build


SHIFTED = {seed: BASE[seed] + 1.0 + 0.1 * seed for seed in (0, 1, 2)}  # +1.0, +1.1, +1.2: mean 1.1, s 0.1


def test_a_printed_difference_is_judged_by_the_difference_of_ours(lines: Callable[..., list[Line]]) -> None:
    matched = {"base": _ours(BASE), "less": _ours(SHIFTED)}

    def cell(printed: str, **changes: Any) -> Any:
        return lines(matched, top1=printed, **changes)[1].cells[0]

    one = cell("+1.4")  # band 0.05 + 4.303 x 0.1 x sqrt(1/3 + 1) = 0.547
    assert (one.ours, one.difference, one.verdict) == ("+1.10 ± 0.10", "−0.30", "reproduced")
    assert one.interval == "+0.85 – +1.35"
    assert cell("+0.4").verdict == "worse" and cell("+2.4").verdict == "better"
    accuracy = cell("-1.4", unit="accuracy")
    assert (accuracy.ours, accuracy.difference, accuracy.verdict) == ("−1.10 ± 0.10", "+0.30", "reproduced")
    assert cell("+1.4", unit="accuracy").verdict == "worse"


def test_a_difference_needs_both_rows(lines: Callable[..., list[Line]]) -> None:
    line = lines({"less": _ours(SHIFTED)}, top1="+1.4")[1]
    assert line.joined("verdict") == "not run" and line.run.endswith(": digits.base: not run")
    refused = _ours({0: 1.0}, refused="499 images, not 500")
    line = lines({"less": _ours(SHIFTED), "base": refused}, top1="+1.4")[1]
    assert line.joined("verdict") == "no claim" and line.run.endswith(": digits.base: 499 images, not 500")


def test_a_table_of_our_own_prints_errors_and_differences(
    lines: Callable[..., list[Line]], write_table: Callable[..., Path], tmp_path: Path
) -> None:
    found = lines({"base": _ours(BASE), "less": _ours(SHIFTED, "4567abcd")}, base=None, top1=None)
    table = read_table("digits", tmp_path / "conf" / "errors")
    assert (found[0].joined("from_base"), found[0].joined("exceeds_seeds")) == ("–", "–")
    assert (found[1].joined("from_base"), found[1].joined("exceeds_seeds")) == ("+1.10 ± 0.25", "yes")
    assert found[1].joined("ours").startswith("51.57 ± ") and found[1].joined("verdict") == "–"
    for text in (terminal_table(table, found), markdown_table(table, found), latex_table(table, found)):
        assert "exceeds seeds" in text and "paired differences" in text and "seed{0..4}" in text.replace("\\", "")
    (row,) = (row for row in csv.DictReader(csv_table(table, found).splitlines()) if row["id"] == "less")
    assert (row["from_base"], row["from_base_mean"], row["from_base_half_width"]) == ("+1.10 ± 0.25", "+1.10", "0.25")

    others = {seed + 7: error for seed, error in SHIFTED.items()}
    unpaired = lines({"base": _ours(BASE), "less": _ours(others)}, base=None, top1=None)
    assert unpaired[1].joined("from_base").endswith("†") and "† The rows' seeds differ" in terminal_table(
        table, unpaired
    )
    row = list(csv.DictReader(csv_table(table, unpaired).splitlines()))[1]
    assert row["from_base"].endswith("†") and float(row["from_base_half_width"]) > 0


def test_seeds_of_one_experiment_are_named_together() -> None:
    def text(*names: str) -> str:
        return folders_text([Path("runs") / name for name in names])

    assert text("a/seed0-12ab", "a/seed1-12ab", "a/seed2-12ab") == "a/seed{0..2}-12ab"
    assert text("a/seed10-12ab", "a/seed9-12ab", "b/seed1-12ab") == "a/seed{9,10}-12ab, b/seed1-12ab"
    assert text("a/seed0-12ab", "a/seed2-12ab", "a/seed5-12ab") == "a/seed{0,2,5}-12ab"
    assert text("a/seed0-12ab", "a/seed0-34cd", "evaluations/ensemble-1") == (
        "a/seed0-12ab, a/seed0-34cd, evaluations/ensemble-1"
    )


def test_a_base_row_of_another_table_comes_along(write_table: Callable[..., Path]) -> None:
    row = {"id": "less", "row": "Less", "top1": "+1.4", "top5": None, "experiment": "lenet5_digits"}
    write_table("paper")
    table = read_table("digits", folder := write_table(rows=[row | {"delta_of": "paper.lenet5"}]))
    own, other = with_bases([table], folder)
    assert own == table and [(other.name, one.id) for one in other.rows] == [("paper", "lenet5")]
    with pytest.raises(UserError, match="row less: delta_of: is the row itself"):
        read_table("digits", write_table(rows=[row | {"delta_of": "less"}]))

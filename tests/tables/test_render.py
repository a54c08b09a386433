"""Comparison tables on the terminal, in Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tencrop.tables.lines import Line, Measurement, lines_of, protocol_text
from tencrop.tables.reading import read_table
from tencrop.tables.render import csv_table, latex_table, latex_text, markdown_table, terminal_table
from tencrop.tables.schema import ErrorTable, RowProtocol

ROWS: list[dict[str, Any]] = [
    {"id": "a", "row": "A", "top1": "24.0", "top5": "7.1", "test_top5": "7.3", "experiment": "lenet5_digits"},
    {"id": "b", "row": "B, 100%_wide", "top1": "23.5", "top5": None, "test_top5": None, "experiment": "lenet5_digits",
     "protocol": {"name": "dense", "average": "softmax", "side": [36, 48], "filter": None}},
    {"id": "c", "row": "C | D", "top1": "22.0", "top5": "6.0", "test_top5": None,
     "members": [{"row": "a", "seeds": 2}, {"row": "b"}]},
    {"id": "d", "row": "D", "top1": None, "top5": None, "test_top5": "6.9", "cannot": "test labels are withheld",
     "protocol": None, "confidence": "memory, unverified"},
]  # fmt: skip
OURS = {
    ("digits", "a"): Measurement(
        {1: (24.1, 24.2, 24.3), 5: (7.9, 8.0, 8.1)}, 50_000, (Path("runs/a/seed0-0123abcd"),) * 3
    ),
    ("digits", "b"): Measurement({}, 0, (Path("runs/b/seed0-0123abcd"),), "protocol center, not dense"),
}


@pytest.fixture
def table(write_table: Callable[..., Path]) -> ErrorTable:
    columns = ["top1", "top5", "test_top5"]
    return read_table("digits", write_table(rows=ROWS, columns=columns, note="A note.", title="Table <1>"))


@pytest.fixture
def lines(table: ErrorTable) -> list[Line]:
    return lines_of(table, OURS)


def test_cells_of_a_row_are_joined(lines: list[Line]) -> None:
    a, b, c, d = lines
    assert a.joined("printed") == "24.0 / 7.1 / 7.3"
    assert a.joined("ours") == "24.20 ± 0.10 / 8.00 ± 0.10 / –"
    assert a.joined("difference") == "+0.20 / +0.90 / –"
    assert a.joined("interval") == "23.83 – 24.58 / 7.77 – 8.24 / –"
    assert a.joined("verdict") == "reproduced / worse"  # nobody measures the third column
    assert (a.seeds, a.num_images) == ("3", "50,000")
    assert (b.joined("verdict"), b.joined("ours"), b.seeds) == ("no claim", "–", "–")
    assert b.run == "b/seed0-0123abcd: protocol center, not dense"
    assert (c.joined("verdict"), c.run) == ("not run", "ensemble of 2 x a, 1 x b")
    assert (d.joined("verdict"), d.run) == ("not run", "test labels are withheld")
    assert d.joined("confidence") == "memory, unverified"


def test_a_row_without_a_run_shows_the_command(table: ErrorTable) -> None:
    line = lines_of(table, {})[0]
    assert (line.joined("verdict"), line.run) == ("not run", "python train.py experiment=lenet5_digits")


def test_accuracies_are_printed_as_accuracies(write_row: Callable[..., Path], write_table: Callable[..., Path]) -> None:
    rows = [ROWS[0] | {"top1": "76.0", "top5": "92.9"}]
    table = read_table("digits", write_table(rows=rows, columns=["top1", "top5", "test_top5"], unit="accuracy"))
    line = lines_of(table, OURS)[0]
    assert line.joined("ours") == "75.80 ± 0.10 / 92.00 ± 0.10 / –"
    assert line.joined("difference") == "−0.20 / −0.90 / –"
    assert line.joined("interval") == "75.42 – 76.17 / 91.76 – 92.23 / –"
    assert line.joined("verdict") == "reproduced / worse"


def test_the_mean_of_several_runs_narrows_the_band(write_table: Callable[..., Path]) -> None:
    def verdict(num_runs: int) -> str:
        rows = [ROWS[0] | {"top1": "23.75", "num_runs": num_runs}]
        table = read_table("digits", write_table(rows=rows, columns=["top1", "top5", "test_top5"]))
        return lines_of(table, OURS)[0].cells[0].verdict

    # 0.45 from it; bands 0.502 and 0.319
    assert (verdict(1), verdict(5)) == ("reproduced", "worse")


def test_a_bound_is_not_compared(write_table: Callable[..., Path]) -> None:
    rows = [ROWS[0] | {"top1": ">24.0"}]
    table = read_table("digits", write_table(rows=rows, columns=["top1", "top5", "test_top5"]))
    cell = lines_of(table, OURS)[0].cells[0]
    assert (cell.printed, cell.ours, cell.difference, cell.verdict) == (">24.0", "24.20 ± 0.10", "–", "–")


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        (RowProtocol("center", 256, 224, "whole", "shorter_side", "bicubic", None), "center 224 of 256 px, bicubic"),
        (
            RowProtocol("ten_crop", 256, 224, "square", "shorter_side", None, "softmax"),
            "ten_crop 224 of 256 px, central square, softmax",
        ),
        (RowProtocol("dense", (224, 256), 224, "whole", None, None, None), "dense 224 of 224, 256 px"),
        (RowProtocol("center", 384, 384, "whole", "warp", None, None), "center 384 of 384 px, stretched"),
        (
            RowProtocol("center", None, 299, "whole", "central_fraction", None, None),
            "center 299 of the central 87.5%, stretched",
        ),
        (RowProtocol(None, None, 224, None, None, None, None), "views not stated 224"),
        (None, "–"),
    ],
)
def test_protocol_text(protocol: RowProtocol | None, text: str) -> None:
    assert protocol_text(protocol) == text


def test_the_terminal_omits_empty_columns(table: ErrorTable, lines: list[Line]) -> None:
    text = terminal_table(table, lines)
    assert text.startswith("Table <1>\nSource: Someone 1998\ntop-1 / top-5 / top-5 test error, percent; digits val\n")
    assert 'Not stated about the protocol: filter of "B, 100%_wide", "C | D"' in text
    assert "difference" in text and text.endswith("A note.\n")
    not_run = terminal_table(table, lines_of(table, {}))
    head = next(line for line in not_run.splitlines() if line.startswith("row"))
    assert head.split() == ["row", "protocol", "printed", "verdict", "confidence", "run"]


def test_a_protocol_of_most_rows_stands_above_the_table(write_table: Callable[..., Path]) -> None:
    rows = [ROWS[0] | {"id": name} for name in "abc"] + [ROWS[0] | {"id": "d", "protocol": {"side": 48}}]
    table = read_table("digits", write_table(rows=rows, columns=["top1", "top5", "test_top5"]))
    text = terminal_table(table, lines_of(table, OURS))
    assert "Protocol: center 32 of 36 px, bilinear, where a row names no other\n" in text
    assert text.count("32 of 36 px") == 1 and text.count("32 of 48 px") == 1
    rows_printed = [line for line in text.splitlines() if line.startswith("A  ")]
    assert ["center 32 of" in line for line in rows_printed] == [False, False, False, True]
    assert latex_table(table, lines_of(table, OURS)).count("of 36 px") == 1
    same = read_table("digits", write_table(rows=rows[:3], columns=["top1", "top5", "test_top5"]))
    text = terminal_table(same, lines_of(same, OURS))
    head = next(line for line in text.splitlines() if line.startswith("row "))
    assert "Protocol: center 32 of 36 px, bilinear\n" in text and "protocol" not in head


def test_a_guessed_band_is_explained(table: ErrorTable) -> None:
    one = {("digits", "a"): Measurement({1: (24.1,), 5: (7.1,)}, 50_000, (Path("runs/a/seed0-0123abcd"),))}
    text = terminal_table(table, lines_of(table, one))
    assert "reproduced*" in text and "* The band of fewer than three seeds is a guess." in text
    assert "guess" not in terminal_table(table, lines_of(table, OURS))


def test_markdown_keeps_its_columns(table: ErrorTable, lines: list[Line]) -> None:
    text = markdown_table(table, lines)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {11}
    assert "**Table &lt;1>**" in text and "| C \\| D |" in text


def test_csv_has_one_line_per_number(table: ErrorTable, lines: list[Line]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(table, lines))))
    assert len(rows) == 4 * 3
    first = rows[0]
    assert (first["id"], first["column"], first["printed"], first["difference"]) == ("a", "top1", "24.0", "+0.20")
    assert (first["low"], first["high"], first["images"], first["seeds"]) == ("23.83", "24.58", "50000", "3")
    assert (first["ours"], first["ours_mean"], first["ours_std"]) == ("24.20 ± 0.10", "24.20", "0.10")
    assert rows[2]["ours"] == rows[2]["ours_mean"] == rows[2]["ours_std"] == rows[2]["low"] == rows[2]["verdict"] == ""
    assert rows[3]["row"] == "B, 100%_wide" and rows[3]["verdict"] == "no claim"


def test_latex_has_the_rules_of_booktabs(table: ErrorTable, lines: list[Line]) -> None:
    text = latex_table(table, lines)
    assert [rule for rule in (r"\toprule", r"\midrule", r"\bottomrule") if text.count(rule) == 1] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == 4 and all(line.endswith(r" \\") and line.count(" & ") == 9 for line in body)
    assert r"B, 100\%\_wide" in text and r"24.20 $\pm$ 0.10" in text and r"\label{tab:digits}" in text
    assert r"\caption{Table $<$1$>$." in text


def test_latex_special_characters_are_escaped() -> None:
    assert latex_text(r"[1] a_b 5% {x} \y ~ ^ & # $ | *") == (
        r"{[}1] a\_b 5\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \& \# \$ $|$ {*}"
    )


def test_a_table_of_our_own_measurements_has_no_columns_about_printed_numbers(
    write_table: Callable[..., Path],
) -> None:
    rows = [ROWS[0] | dict.fromkeys(("top1", "top5", "test_top5")), ROWS[1] | {"top1": None}]
    table = read_table("digits", write_table(rows=rows, columns=["top1", "top5", "test_top5"]))
    lines = lines_of(table, OURS)
    assert [cell.verdict for cell in lines[0].cells] == ["–"] * 3
    heads = next(line for line in markdown_table(table, lines).splitlines() if line.startswith("| row"))
    assert heads == "| row | protocol | ours | 95% interval | seeds | run |"
    assert "24.20 ± 0.10 / 8.00 ± 0.10 / –" in terminal_table(table, lines)
    assert "23.83 – 24.58" in markdown_table(table, lines)


def test_guesses_are_beside_the_verdict(table: ErrorTable) -> None:
    a = OURS["digits", "a"]
    guessing = Measurement(a.errors, a.num_images, a.runs, guesses=("optimizer.lr",))
    lines = lines_of(table, OURS | {("digits", "a"): guessing})
    assert [line.guessed for line in lines] == ["optimizer.lr", "–", "–", "–"]
    head, row = (
        line.split("  ") for line in terminal_table(table, lines).splitlines() if line.startswith(("row  ", "A  "))
    )
    assert [cell.strip() for cell in head if cell][-3:] == ["guessed", "confidence", "run"]
    assert "optimizer.lr" in [cell.strip() for cell in row]
    assert "guessed" not in terminal_table(table, lines_of(table, {}))

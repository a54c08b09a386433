"""The same rows as aligned text, Markdown and CSV."""

import csv
import io

from tencrop.text_tables import aligned, csv_table, markdown_table

HEAD, ROWS = ("name", "error"), [("a", "7.00"), ("resnet50", "24.01")]


def test_aligned_columns():
    assert aligned([HEAD, *ROWS], left=[0]) == ["name      error", "a          7.00", "resnet50  24.01"]
    assert aligned([HEAD, *ROWS], left=[0, 1], gap=" ") == ["name     error", "a        7.00", "resnet50 24.01"]
    assert aligned([]) == []


def test_markdown_escapes_what_would_end_a_cell():
    text = markdown_table(HEAD, [("a|<b>\n*", "1")], left=[0])
    assert text == "| name | error |\n| :-- | --: |\n| a\\|&lt;b> * | 1 |\n"
    assert markdown_table(HEAD, [("a|b", "1")], escape=str).endswith("| a|b | 1 |\n")


def test_csv_is_read_back():
    rows = [["a,b", '"quoted"'], ["two\nlines", "–"]]
    text = csv_table(HEAD, rows)
    assert "\r" not in text and list(csv.reader(io.StringIO(text))) == [list(HEAD), *rows]

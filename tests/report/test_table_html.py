"""Papers' tables in HTML: on a page of their own, and in the report if a run of ours is in them."""

import re
import sys
from pathlib import Path

import pytest

from tencrop.commands import report as command
from tencrop.report.table_html import table_html, table_page, tables_with_runs
from tencrop.tables.lines import Measurement, lines_of
from tencrop.tables.reading import read_table

OURS = Measurement(
    {1: (24.1, 24.2, 24.3), 5: (7.0, 7.1, 7.2)}, 50_000, (Path("runs/<a>/seed0-0123abcd"),), guesses=("optimizer.lr",)
)


def cells_of(html: str) -> list[list[str]]:
    """The text of every line of numbers, cell by cell."""
    rows = re.findall(r"<tr><th scope=row>.*?</tr>", html)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_a_line_for_every_number_with_what_is_ours() -> None:
    table = read_table("vgg_table3")
    html = table_html(table, lines_of(table, {("vgg_table3", "a_256"): OURS}))
    cells = cells_of(html)
    assert len(cells) == 2 * len(table.rows)
    # the interval is in the page twice: in its column, and below ours for narrow screens
    assert cells[0] == ["top-1", "29.6", "24.20 ± 0.1023.83 – 24.58", "−5.40", "23.83 – 24.58", "better"]
    assert cells[2] == ["top-1", "29.7", "–", "–", "–", "not run"]
    about = re.search(r"<b>A, S=256, Q=256</b> (.*?)</th>", html)
    assert about is not None
    assert about[1] == (
        "dense 224 of 256 px, softmax <small>1 seed · 50,000 images · guessed: protocol.filter, optimizer.lr · printed"
        " number: two transcriptions · &lt;a&gt;/seed0-0123abcd</small>"
    )


def test_a_page_of_its_own_loads_nothing() -> None:
    table = read_table("zfnet_table2")
    page = table_page(table, lines_of(table, {}))
    assert page.startswith("<!doctype html>") and "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)


def test_the_report_has_the_tables_with_a_run_of_ours_only() -> None:
    tables = [read_table("vgg_table3"), read_table("zfnet_table2")]
    assert tables_with_runs(tables, {}) == []
    (html,) = tables_with_runs(tables, {("zfnet_table2", "one"): OURS})
    assert "ZFNet, table 2" in html


def test_report_writes_the_table_of_a_run(
    print_table, evaluated_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tencrop.tables import reading

    print_table(top1="1.5")
    folder = sorted(tmp_path.glob("errors*"))[-1]
    evaluated_run()
    tables = [reading.read_table("printed", folder)]
    monkeypatch.setattr(reading, "read_tables", lambda: tables)
    monkeypatch.setattr(sys, "argv", ["report.py", f"runs={tmp_path}/runs", f"output={tmp_path}/report"])
    with pytest.raises(SystemExit, match=r"^0$"):
        command.main()
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('<table class="errors paper">') == 1 and "<h2>Papers&#39; tables</h2>" in page
    assert ["top-1", "1.5"] in [row[:2] for row in cells_of(page)]

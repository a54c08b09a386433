"""The same table on the terminal, in Markdown and in HTML: rows left out are counted, and hostile text is escaped."""

from tencrop.report.blocks import Block

ROWS = [(f"class {number}", str(number)) for number in range(30)]


def test_rows_that_do_not_fit_are_counted():
    block = Block("Title", ("class", "images"), ROWS, left=(0,), note="A note.", more_in="all.csv")
    lines = block.terminal(3).splitlines()
    assert lines == [
        "Title", "  class     images", "  class 0        0", "  class 1        1", "  class 2        2",
        "and 27 more, in all.csv", "A note.",
    ]  # fmt: skip
    assert block.markdown(3).splitlines()[2:] == [
        "| class | images |", "| :-- | --: |", "| class 0 | 0 |", "| class 1 | 1 |", "| class 2 | 2 |", "",
        "and 27 more, in all.csv", "", "A note.",
    ]  # fmt: skip
    html = str(block.html(3))
    assert html.count("<tr>") == 4 and "and 27 more, in all.csv" in html


def test_a_block_may_show_all_rows_or_have_none():
    assert "more" not in Block("", ("class", "images"), ROWS, all_rows=True).terminal(3)
    empty = Block("Nothing differs.", ("class", "images"))
    assert (empty.terminal(), empty.markdown()) == ("Nothing differs.", "**Nothing differs.**\n")
    assert "<table" not in str(empty.html())


def test_names_from_a_strangers_data_are_escaped():
    block = Block("<b>", ("class",), [("<script>|\x1b[2J",)])
    assert "\x1b" not in block.terminal() and "\\x1b" in block.terminal()
    assert "<script" not in block.markdown() and "\\|" in block.markdown()
    assert "<script" not in str(block.html()) and "<b>" not in str(block.html())

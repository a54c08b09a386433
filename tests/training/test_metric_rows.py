import json
import os

import pytest

from tencrop.config import UserError
from tencrop.training.metric_rows import NO_ROWS, append_row, keep_rows, last_digest, read_rows

ROWS = [{"step": step, "epoch": step / 4, "split": "train", "loss": 2.5, "top1_error": 0.75} for step in range(1, 6)]


def write_rows(path, rows, digest):
    with path.open("a") as file:
        for row in rows:
            digest = append_row(file, row, digest)
    return digest


@pytest.fixture
def path(tmp_path):
    """A metrics.jsonl with five rows."""
    digest = write_rows(tmp_path / "metrics.jsonl", ROWS, NO_ROWS)
    assert last_digest(tmp_path / "metrics.jsonl") == digest
    return tmp_path / "metrics.jsonl"


def without_digests(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_what_is_written_is_read(path):
    assert read_rows(path) == read_rows(path, expected=last_digest(path)) == ROWS
    assert json.loads(path.read_text().splitlines()[0])["loss"] == 2.5, "a row is plain JSON"
    assert read_rows(path.with_name("none")) == [] and last_digest(path.with_name("none")) is None


def test_every_changed_digit_is_found(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        for place in (place for place, character in enumerate(line) if character.isdigit()):
            changed = line[:place] + str((int(line[place]) + 1) % 10) + line[place + 1 :]
            path.write_text("\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n")
            with pytest.raises(UserError, match=r"metrics\.jsonl: row [1-5] is"):
                read_rows(path)


@pytest.mark.parametrize("number", range(4))
def test_a_dropped_or_moved_row_is_found(path, number):
    lines = path.read_text().splitlines(keepends=True)
    for others in (lines[:number] + lines[number + 1 :], lines[number + 1 :] + lines[: number + 1], [*lines, lines[0]]):
        path.write_text("".join(others))
        with pytest.raises(UserError, match="is not what was written, or the row before it is missing"):
            read_rows(path)


def test_dropped_last_rows_are_found_where_the_manifest_knows_the_digest(path):
    expected = last_digest(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert read_rows(path) == ROWS[:3]
    with pytest.raises(UserError, match="its last rows are missing"):
        read_rows(path, expected=expected)


def test_a_last_line_that_a_kill_cut_short_is_left_out(path):
    content = path.read_bytes()
    for num_bytes in range(len(content) - 60, len(content)):
        path.write_bytes(content[:num_bytes])
        assert read_rows(path) in (ROWS, ROWS[:4])
    path.write_bytes(content.replace(b'"step": 5', b'"step": ['))
    with pytest.raises(UserError, match="row 5 is broken"):
        read_rows(path)


def test_rows_of_earlier_code_are_read_and_covered_by_later_digests(path):
    path.write_text(without_digests(ROWS[:2]))
    assert read_rows(path) == ROWS[:2] and last_digest(path) is None
    num_rows, digest = keep_rows(path, 2)
    write_rows(path, ROWS[2:3], digest)
    assert num_rows == 2 and read_rows(path) == ROWS[:3]
    path.write_text(path.read_text().replace("0.75", "0.25", 1))
    with pytest.raises(UserError, match="row 3 is not what was written"):
        read_rows(path)
    path.write_text(without_digests([{**ROWS[0], "split": "val", "loss": float("inf")}]))
    assert read_rows(path)[0]["loss"] == float("inf"), "as a validation may write it"


def test_a_resumed_run_continues_the_digests(path, tmp_path):
    whole = path.read_bytes()
    kept = whole[: whole.index(b'{"step": 4')]
    path.write_bytes(whole + b'{"step": 6, "lo')  # killed during a write
    num_rows, digest = keep_rows(path, 3)
    assert (num_rows, path.read_bytes()) == (3, kept) and os.listdir(tmp_path) == ["metrics.jsonl"]
    digest = write_rows(path, ROWS[3:], digest)
    assert path.read_bytes() == whole
    assert keep_rows(path, 5, digest) == (5, digest)
    assert keep_rows(path, 0) == (0, NO_ROWS) and path.read_bytes() == b""
    assert keep_rows(tmp_path / "none.jsonl", 3) == (0, NO_ROWS)


def test_resuming_with_other_rows_is_refused(path):
    with pytest.raises(UserError, match="not the 6 rows that the run wrote"):
        keep_rows(path, 6)
    with pytest.raises(UserError, match="not the 3 rows that the run wrote"):
        keep_rows(path, 3, last_digest(path))
    path.write_text(path.read_text().replace("0.75", "0.25", 1))
    with pytest.raises(UserError, match="row 1 is not what was written"):
        keep_rows(path, 3)


@pytest.mark.parametrize(
    "row",
    [
        "[]",
        "1",
        "{}",
        '{"epoch": 1}',
        '{"epoch": "1", "split": "val"}',
        '{"epoch": 1e999, "split": "val"}',
        '{"epoch": 1, "split": "test"}',
        '{"epoch": 1, "split": "val", "num_images": 0}',
        '{"epoch": 1, "split": "val", "top1_error": 7.5}',
        '{"epoch": 1, "split": "val", "top1_error": NaN}',
        '{"epoch": 1, "split": "val", "step": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_an_invalid_row_is_refused(path, row):
    path.write_text(row + "\n")
    with pytest.raises(UserError, match=r"row 1 is broken \(.*\); restore it") as error:
        read_rows(path)
    assert "\n" not in str(error.value)

"""The CSV tracker continues where a killed run went on from."""

import pytest

from tencrop.records.csv_logger import CsvLogger


def test_rows_and_resuming(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    for step in (20, 40, 60):
        logger.log_metrics({"train/loss": 1 / step, "lr": 0.1}, step=step)
    resumed = CsvLogger(path)  # from a checkpoint at step 30: steps 40 and 60 are taken again
    resumed.log_metrics({"train/loss": 0.5, "lr": 0.01}, step=40)
    assert path.read_text().splitlines() == [
        "step,name,value",
        "20,lr,0.1",
        "20,train/loss,0.05",
        "40,lr,0.01",
        "40,train/loss,0.5",
    ]


def test_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,name,value\n20,lr,0.1\n40,train/l")
    CsvLogger(path).log_metrics({"lr": 0.2}, step=60)
    assert path.read_text().splitlines() == ["step,name,value", "20,lr,0.1", "60,lr,0.2"]


def test_an_evaluation_adds_to_the_rows_of_its_step(tmp_path):
    path = tmp_path / "metrics.csv"
    CsvLogger(path).log_metrics({"train/loss": 0.5}, step=60)
    for error in (0.25, 0.125):  # evaluated twice
        CsvLogger(path).log_metrics({"ten_crop/top1_error": error}, step=60)
    rows = path.read_text().splitlines()
    assert rows == ["step,name,value", "60,train/loss,0.5", "60,ten_crop/top1_error,0.125"]


@pytest.mark.parametrize(
    "line", [b"\xff,lr,1", b"9" * 5000 + b",lr,1", "²,lr,1".encode(), b'"' + b"x" * 200_000, b"\0"]
)
def test_damaged_lines_are_dropped(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,name,value\n20,lr,0.1\n" + line + b"\n40,lr,0.2\n")
    CsvLogger(path).log_metrics({"lr": 0.3}, step=60)
    assert path.read_text().splitlines() == ["step,name,value", "20,lr,0.1", "40,lr,0.2", "60,lr,0.3"]

"""The CSV logger continues its file when a killed run is resumed."""

import pytest

from tencrop.records.csv_logger import CsvLogger


def log(path, *rows):
    """Log (values, step) one after the other, as one process does."""
    logger = CsvLogger(path)
    for values, step in rows:
        logger.log_metrics(values, step=step)
    logger.finalize("success")


def test_rows_and_resuming(tmp_path):
    path = tmp_path / "metrics.csv"
    log(path, *(({"train/loss": 1 / step, "lr": 0.1}, step) for step in (20, 40, 60)))
    log(path, ({"train/loss": 0.5, "lr": 0.01}, 40))  # from a checkpoint at step 30: steps 40 and 60 are taken again
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
    log(path, ({"lr": 0.2}, 60))
    assert path.read_text().splitlines() == ["step,name,value", "20,lr,0.1", "60,lr,0.2"]


def test_an_evaluation_adds_to_the_rows_of_its_step(tmp_path):
    path = tmp_path / "metrics.csv"
    log(path, ({"train/loss": 0.5}, 60))
    for error in (0.25, 0.125):  # evaluated twice
        log(path, ({"ten_crop/top1_error": error}, 60))
    rows = path.read_text().splitlines()
    assert rows == ["step,name,value", "60,train/loss,0.5", "60,ten_crop/top1_error,0.125"]


def test_a_row_is_readable_at_once_and_the_file_stays_open(tmp_path):
    """Closing a file on NFS waits for its server, and a training logs within its steps."""
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log_metrics({"lr": 0.1}, step=20)
    open_file = logger._file
    for step in (40, 60):
        logger.log_metrics({"lr": 0.1}, step=step)
        assert path.read_text().splitlines()[-1] == f"{step},lr,0.1"
    assert logger._file is open_file and not open_file.closed
    logger.finalize("success")
    assert open_file.closed


@pytest.mark.parametrize(
    "line", [b"\xff,lr,1", b"9" * 5000 + b",lr,1", "²,lr,1".encode(), b'"' + b"x" * 200_000, b"\0"]
)
def test_damaged_lines_are_dropped(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,name,value\n20,lr,0.1\n" + line + b"\n40,lr,0.2\n")
    log(path, ({"lr": 0.3}, 60))
    assert path.read_text().splitlines() == ["step,name,value", "20,lr,0.1", "40,lr,0.2", "60,lr,0.3"]

"""Progress is a bar on a terminal and lines elsewhere. The output of `announce` is tested with prepare."""

import io
import time

import pytest
from rich.console import Console

from tencrop.progress import counting_bytes, counting_images


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told: clock[0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_thirty_seconds(clock):
    file = io.StringIO()
    with counting_images(Console(file=file, soft_wrap=True), "train", 10_000) as advance:
        for number in (0, 3000, 1000, 0, 2000, 4000):
            clock[0] += 20
            advance(number)
    assert file.getvalue().splitlines() == [
        "train: 3,000 of 10,000 images, 150 images/s, 0:00:47 left",
        "train: 4,000 of 10,000 images, 66.7 images/s, 0:01:30 left",
        "train: 10,000 of 10,000 images, 100 images/s",
    ]


def test_work_done_before_is_not_counted_in_the_rate(clock):
    file = io.StringIO()
    with counting_images(Console(file=file, soft_wrap=True), "train", 1_000_000) as advance:
        advance(900_000)
        clock[0] += 50
        advance(50_000)
    assert file.getvalue() == "train: 950,000 of 1,000,000 images, 1,000 images/s, 0:00:50 left\n"


def test_everything_was_done_before(clock):
    file = io.StringIO()
    with counting_images(Console(file=file, soft_wrap=True), "train", 7) as advance:
        advance(7)
    assert file.getvalue() == "train: 7 of 7 images\n"


def test_bytes(clock):
    file = io.StringIO()
    with counting_bytes(Console(file=file, soft_wrap=True), "MD5 of a.tar", 4_000_000_000) as advance:
        advance(0)
        clock[0] += 40
        advance(4_000_000_000)
    assert file.getvalue() == "MD5 of a.tar: 4 GB of 4 GB, 100 MB/s\n"


def test_a_terminal_gets_a_bar_and_quiet_gets_nothing():
    for shown in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True) if shown else Console(file=file, quiet=True)
        with counting_images(console, "val", 10) as advance:
            advance(10)
        assert ("10/10" in file.getvalue()) == shown and "10 of 10" not in file.getvalue()

"""A place that cannot be written is found by trying, and is left as it was."""

import os

import pytest

from tencrop.config import UserError
from tencrop.config.writable import check_writable


def check(*paths):
    check_writable(*paths, remedy="name another")


def test_a_writable_folder_is_left_unchanged(tmp_path, monkeypatch):
    (tmp_path / "kept.html").write_text("old")
    before = os.stat(tmp_path / "kept.html")
    check(tmp_path / "kept.html", tmp_path / "new.html", tmp_path / "not" / "there" / "yet" / "new.html")
    assert os.listdir(tmp_path) == ["kept.html"] and os.stat(tmp_path / "kept.html") == before
    monkeypatch.chdir(tmp_path)
    check(tmp_path.__class__("report.html"), tmp_path.__class__("folder/report.html"))


def test_a_read_only_folder_is_found(tmp_path, read_only):
    (tmp_path / "out").mkdir()
    place = read_only(tmp_path / "out")
    for path in (place / "report.html", place / "not" / "there" / "report.html"):
        with pytest.raises(
            UserError, match=rf"^{path}: cannot be written \(the file system is read-only\); name another$"
        ):
            check(tmp_path / "first.html", path)


def test_a_full_disk_is_found(small_disk):
    check(small_disk / "report.html")
    with pytest.raises(OSError, match="No space"), open(small_disk / "large", "wb", buffering=0) as file:
        while True:
            assert file.write(bytes(4096))
    with pytest.raises(UserError, match="the disk is full"):
        check(small_disk / "report.html")
    assert os.listdir(small_disk) == ["large"], "nothing is left behind"


def test_impossible_file_names_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "gone")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    reasons = {
        "folder": "there is a folder where a file should be",
        "file/report.html": "a part of the path is a file",
        "file/below/report.html": "a part of the path is a file",
        "nowhere/report.html": "there is no such file or folder",
        "circle/report.html": "symbolic links form a loop",
        "n" * 300: "the name is too long",
        "n" * 300 + "/report.html": "the name is too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"cannot be written \({reason}"):
            check(tmp_path / name)

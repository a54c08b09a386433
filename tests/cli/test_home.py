import os
import pwd
from pathlib import Path

import pytest

from tencrop.cli import home
from tencrop.cli.home import CACHES, provide_cache_folder


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The environment without any of the variables, and no home folder in /etc/passwd."""

    def unknown(uid: int):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(home.tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", *CACHES):
        monkeypatch.setenv(name, "")  # restored afterwards, also where provide_cache_folder sets it
        monkeypatch.delenv(name)
    return monkeypatch


def test_without_a_home_folder_there_is_a_temporary_one(environment, tmp_path):
    provide_cache_folder()
    (folder,) = tmp_path.iterdir()
    assert {os.environ[name] for name in ("HOME", *CACHES)} == {str(folder)}
    provide_cache_folder()  # as a rank, which inherits the environment
    assert list(tmp_path.iterdir()) == [folder]


def test_a_home_folder_that_cannot_be_written_stays_and_caches_go_elsewhere(environment, tmp_path):
    environment.setattr(os, "access", lambda path, mode: path != Path("/"))
    environment.setenv("HOME", "/")
    environment.setenv("MPLCONFIGDIR", "/of/the/user")
    provide_cache_folder()
    (folder,) = tmp_path.iterdir()
    assert os.environ["HOME"] == "/" and os.environ["MPLCONFIGDIR"] == "/of/the/user"
    assert os.environ["WANDB_CACHE_DIR"] == str(folder)


def test_a_home_folder_that_can_be_written_is_used(environment, tmp_path):
    environment.setenv("HOME", str(tmp_path))
    provide_cache_folder()
    assert not list(tmp_path.iterdir()) and "MPLCONFIGDIR" not in os.environ

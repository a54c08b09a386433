"""The image: both files build the same one, and its programs run as a user without a name who cannot write the source.

bench/container.py carries out the steps themselves, which takes minutes and gigabytes.
"""

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOBODY = 12345


def recipes():
    readers = runpy.run_path(str(ROOT / "bench" / "container.py"))["READERS"]
    return [read((ROOT / name).read_text()) for name, read in readers.items()]


def test_both_files_have_the_same_steps():
    docker, apptainer = recipes()
    assert (docker.base, docker.path) == (apptainer.base, apptainer.path)
    # Docker copies the lock file first, for its cache; Apptainer copies everything before the first step.
    assert [step for step in docker.steps if step[0] != "copy"] == [
        step for step in apptainer.steps if step[0] != "copy"
    ]
    assert ("copy", ". .") in docker.steps and apptainer.steps[0] == ("copy", ". /tencrop")
    assert sum(kind == "run" for kind, _ in docker.steps) == 3


def test_unknown_instructions_of_a_dockerfile_are_refused():
    read = runpy.run_path(str(ROOT / "bench" / "container.py"))["read_dockerfile"]
    with pytest.raises(ValueError, match="ARG is not carried out"):
        read("FROM debian:bookworm\nARG A=1\nENV PATH=/a\n")


def test_the_commands_are_those_of_the_quickstart():
    commands = runpy.run_path(str(ROOT / "bench" / "container.py"))["quickstart"]()
    assert [words[0] for words in commands] == ["prepare", "train", "evaluate", "evaluate", "report"]
    assert commands[1] == ["train", "experiment=lenet5_digits", "training.max_steps=20"]


@pytest.fixture
def folder():
    """A folder of this user; tmp_path is below folders that only root may enter."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def as_nobody(folder):
    """as_nobody(word, ...): run a command as a user who has no name and no home and can write only in `folder`."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, with setpriv of util-linux")
    os.chown(folder, NOBODY, NOBODY)
    # Python and the checkout may be in folders that only root can read.
    reading = [
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    ]
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", *reading]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    variables = [f"PATH={path}", f"PYTHONPATH={ROOT / 'src'}", "OMP_NUM_THREADS=1", f"TMPDIR={folder}"]

    def run(*words: str, home: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = ["env", "-i", *variables, *([] if home is None else [f"HOME={home}"])]
        return subprocess.run([*user, *environment, *words], cwd=folder, capture_output=True, text=True)

    return run


def test_training_as_a_user_without_a_name(as_nobody, folder):
    denied = as_nobody("touch", str(ROOT / "train.py"))
    assert "Permission denied" in denied.stderr, "this user can write the source"
    helped = as_nobody(sys.executable, str(ROOT / "train.py"), "--help", home="/")
    assert helped.returncode == 0 and helped.stderr == ""
    prepared = as_nobody(sys.executable, str(ROOT / "prepare.py"), "data=digits")
    assert prepared.returncode == 0, prepared.stderr
    words = ("experiment=lenet5_digits", "training.max_steps=2", "allow_other_code=true")
    trained = as_nobody(sys.executable, str(ROOT / "train.py"), *words)
    assert trained.returncode == 0 and "complete" in trained.stdout, trained.stderr
    # Without a home folder, wandb does not start, and matplotlib complains.
    assert "wandb: offline" in trained.stdout, trained.stdout
    assert "created a temporary cache directory" not in trained.stderr, trained.stderr
    (run,) = (folder / "runs" / "lenet5_digits").iterdir()
    assert run.stat().st_uid == NOBODY and (run / "report.html").is_file()
    assert not list(folder.glob("tencrop-home-*"))

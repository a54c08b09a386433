"""Files of conf/ that an editor left, or that hold a mistake: not looked at, or one sentence with file and line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.cli import choices
from tencrop.cli.choices import CONF, describe, groups, options_of
from tencrop.cli.config_source import FileConfigSource
from tencrop.config import UserError
from tencrop.config.yaml_files import yaml_mapping

MINE = (CONF / "experiment" / "lenet5_digits.yaml").read_bytes()
MAC = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xff\xfe"
MISTAKES = {
    "a tab": (MINE.replace(b"\n  lr:", b"\n\tlr:", 1), "line 32: found character '\\t' that cannot start any token"),
    "a key twice": (b"seed: 1\nimage_size: 3\nseed: 2\n", "line 3: found duplicate key seed"),
    "a byte order mark": (b"\xef\xbb\xbf" + MINE, "line 1: begins with a byte order mark"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "line 1: begins with a byte order mark"),
    "Latin-1": (b"# a\n# caf\xe9\nseed: 1\n", "line 2: is not UTF-8"),
    "half written": (b"seed: 1\ntraining: {epochs: ", "line 2: expected the node content"),
    "a control character": (b"seed: 1\nimage_size: \x00\x00\n", "line 2: contains a control character"),
    "no mapping": (b"just a word\n", "line 1: is not a mapping"),
    "a list": (b"- seed\n", "line 1: is not a mapping"),
    "an interpolation without end": (b"name: ${seed\nseed: 1\n", "correct it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_and_line(mistake, tmp_path):
    content, words = MISTAKES[mistake]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as by_us:
        yaml_mapping(path)
    with pytest.raises(UserError) as by_hydra:
        FileConfigSource("test", f"file://{tmp_path}").load_config("mine")
    assert str(by_us.value) == str(by_hydra.value)
    assert str(path) in str(by_us.value) and words in str(by_us.value) and "\n" not in str(by_us.value)


def test_every_file_of_conf_is_read_as_hydra_reads_it():
    source = FileConfigSource("test", f"file://{CONF}")
    for path in [CONF / "train.yaml", *(CONF / "experiment").glob("*.yaml"), *(CONF / "augmentation").glob("*.yaml")]:
        assert source.load_config(str(path.relative_to(CONF))).config == yaml_mapping(path)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ with hidden files as editors and macOS create them, and broken files."""
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    for group in ("model", "experiment"):
        (copy / group / "._resnet50.yaml").write_bytes(MAC)
        (copy / group / ".#resnet18.yaml").symlink_to("me@host.1:2")
    (copy / ".ipynb_checkpoints").mkdir()
    (copy / "experiment" / "empty.yaml").write_bytes(b"")
    (copy / "experiment" / "half.yaml").write_bytes(b"# @package _global_\nmodel: {\nmodel: [1, ")
    (copy / "model" / "latin.yaml").write_bytes(b"# caf\xe9, a network\nname: a\n")
    monkeypatch.setattr(choices, "CONF", copy)
    return copy


def test_hidden_files_are_ignored_and_broken_ones_are_described(conf):
    assert not [name for group in groups() for name in [group, *options_of(group)] if name.startswith(".")]
    assert set(options_of("model")) == {path.stem for path in (CONF / "model").glob("*.yaml")} | {"latin"}
    assert "a network" in describe("model") and "empty" in describe("experiment")


def test_a_command_reads_only_the_files_that_it_needs(conf):
    root = conf.parent
    (root / "src").mkdir()
    shutil.copytree(CONF.parent / "src" / "tencrop", root / "src" / "tencrop", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(CONF.parent / "train.py", root)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "train.py", *words]
        environment = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)

    fine = run("experiment=lenet5_digits", "--cfg", "job")
    assert fine.returncode == 0 and not fine.stderr, fine.stderr
    broken = run("experiment=half", "--cfg", "job")
    assert broken.returncode == 2 and broken.stderr.startswith(f"error: {conf}/experiment/half.yaml: line "), (
        broken.stderr
    )

"""Lists of options: GROUP=? describes a group, model.name=? lists networks, --help wraps the names."""

import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.cli.choices import CONF, describe, files_of, first_sentence, list_options, option_names, options_of
from tencrop.config import Config, PrepareConfig
from tencrop.config.rules import MODEL_NAMES

ROOT = Path(__file__).parents[2]


def run(arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} {arguments}"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )


def test_group_question_mark_describes_every_option():
    result = run("train.py 'model=?'")
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert set(lines) == {path.stem for path in (CONF / "model").glob("*.yaml")}
    assert lines["plain34"] == "34-layer plain network of He et al. 2016 (experiment=resnet_2015)"


@pytest.mark.parametrize("script", ["report.py", "evaluate.py"])
def test_table_question_mark_lists_the_error_tables(script):
    result = run(f"{script} 'table=?'")
    assert (result.returncode, result.stderr) == (0, "")
    assert {line.split()[0] for line in result.stdout.splitlines()} == set(options_of("errors"))


def test_every_option_has_a_description():
    for group in (path.name for path in CONF.iterdir() if path.is_dir()):
        for name in files_of(group):
            assert len(first_sentence(CONF / group / f"{name}.yaml")) > 5, (group, name)


def test_model_name_question_mark_prints_the_committed_list():
    result = run("train.py model=timm 'model.name=?'")
    assert result.returncode == 0 and result.stdout == MODEL_NAMES.read_text()


def test_a_reader_that_stops_early_hears_no_traceback():
    result = run("train.py 'model.name=?' | head -1; test ${PIPESTATUS[0]} -ne 1")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", MODEL_NAMES.read_text().split("\n")[0] + "\n")


def test_other_arguments_get_no_answer():
    assert list_options(["model=resnet50", "seed=1", "no_group=?", "=?", "..=?", "-m"], Config) is None


def test_a_key_is_answered_with_the_values_that_it_accepts():
    assert list_options(["optimizer.name=?"], Config) == "optimizer.name: sgd, sgd_alexnet, adamw, rmsprop_tf or lamb"
    assert list_options(["workers=?"], PrepareConfig) == "workers: auto or a whole number above 0"
    assert list_options(["workers=?"], Config) is None, "a key of another command"


def test_lines_are_cut_to_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    lines = describe("protocol").splitlines()
    assert max(map(len, lines)) == 40 and any(line.endswith("…") for line in lines)


def test_help_wraps_the_names_of_all_groups():
    result = run("train.py --help")
    assert result.returncode == 0 and option_names() in result.stdout
    assert all(f"\n{group}: " in result.stdout for group in ("data", "experiment", "model", "optimizer", "protocol"))
    assert max(len(line) for line in option_names().splitlines()) <= 110
    assert option_names("data") in run("prepare.py --help").stdout


@pytest.mark.parametrize(("argument", "words"), [("model=zzzzz", "model=zzzzz"), ("model=", "model=")])
def test_a_mistake_without_a_near_name_points_to_the_list(argument, words):
    result = run(f"train.py {argument}")
    assert result.returncode == 2 and f"error: {words}: there is no" in result.stderr
    assert "model=? lists the options" in result.stderr


def test_names_are_in_natural_order():
    names = [name for name in options_of("model") if name in ("resnet18", "resnet101", "vgg_a", "alexnet_2012")]
    assert names == ["alexnet_2012", "resnet18", "resnet101", "vgg_a"]

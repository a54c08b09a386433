"""Words of a command: every text can be typed, and a message that refuses a word prints one that works."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tencrop.cli.choices import CONF
from tencrop.cli.command import command, overrides
from tencrop.cli.command_line import check_words, expand_home, parse, typed_word
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import (
    Config,
    EvaluateConfig,
    PrepareConfig,
    ReportConfig,
    UserError,
    VisualizationConfig,
)
from tencrop.config.documents import literal

TEXTS = [
    "/data/größe", "/data/epoch=3", "/data/a#b", "/data/it's", "/data/imagenet (1)", "/data/~/imagenet", "/data/a,b",
    "/data/\"$HOME\"", "/data/(a  b)", "/data/a\\'", "/data/caf\udce9", "[a]", "1e3", "true",
]  # fmt: skip
COMMANDS = {
    "train": (Config, "data.root", lambda config: config.data.root),
    "evaluate": (EvaluateConfig, "weights", lambda config: config.weights),
    "prepare": (PrepareConfig, "data.source", lambda config: config.data.source),
    "report": (ReportConfig, "runs", lambda config: ",".join(config.runs)),
    "visualization": (VisualizationConfig, "output", lambda config: config.output),
}
CASES = [("train", text) for text in TEXTS]
CASES += [(name, text) for name in COMMANDS for text in TEXTS[:1] if name != "train"]


def in_bash(text: str) -> list[str]:
    """The words that bash makes of a line."""
    command = ["bash", "-c", f"printf '%s\\0' {text}"]
    words = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C"}).stdout.split(b"\0")
    return [os.fsdecode(word) for word in words[:-1]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), min_size=5))
def test_every_text_can_be_typed(texts):
    words = in_bash(" ".join(typed_word("data.root", text) for text in texts))
    assert [override.value() for override in parse(words)] == [literal(text) for text in texts]
    (word,) = in_bash(typed_word("checkpoint", texts))
    assert parse([word])[0].value() == [literal(text) for text in texts]


def ran(name: str, words: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, the value that the name got, and what it printed as an error."""
    schema, _, value_of = COMMANDS[name]
    got: list[str] = []
    with pytest.raises(SystemExit) as stop:
        command(name, schema)(lambda config: got.append(value_of(config)))(words)
    return int(stop.value.code or 0), "".join(got), capsys.readouterr().err


@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_refusal_prints_a_word_that_works(name, text, capsys):
    code, got, error = ran(name, [f"{COMMANDS[name][1]}={text}"], capsys)
    assert code == 2 and not got and error.count("\n") == 1, error
    form = re.split(" typed? as | type ", error.rstrip("\n"))[-1]
    assert ran(name, in_bash(form), capsys) == (0, text, "")


@pytest.mark.parametrize("text", ["/data/${seed}", "~/größe/${seed}"])
def test_escaped_interpolations_stay_text(text, capsys):
    assert ran("train", in_bash(typed_word("data.root", text)), capsys) == (0, os.path.expanduser(text), "")


def test_a_folder_is_typed_refused_typed_again_and_found(tmp_path):
    root, place = Path(__file__).parents[2], tmp_path / "größe, it's = #1"
    place.mkdir()
    command = [sys.executable, "report.py", f"runs={place}"]
    first = subprocess.run(command, cwd=root, capture_output=True, text=True)
    line = f"{sys.executable} report.py {first.stderr.strip().partition(' type ')[2]}"
    then = subprocess.run(["bash", "-c", line], cwd=root, capture_output=True, text=True)
    assert f"error: runs={place}: holds no run folder" in then.stderr


def test_a_tilde_is_expanded_to_the_home_folder(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    for typed in ("~/imagenet", "'~/imagenet'", '"~/imagenet"'):
        assert ran("train", [f"data.root={typed}"], capsys) == (0, "/home/me/imagenet", "")
    assert ran("report", ["runs=[a,'~/b']"], capsys) == (0, "a,/home/me/b", "")
    assert check_words(["data.root=~/a,~/b", "+data.source=~"], Config) == [
        "data.root=/home/me/a,/home/me/b",
        "+data.source=/home/me",
    ]
    assert check_words(["name='~/a'"], Config) == ["name='~/a'"], "a name is no path"


def test_one_folder_is_a_list_of_one(capsys):
    assert ran("report", ["runs=a"], capsys) == (0, "a", "")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("resnet50", "did you mean model=resnet50?"),
        ("a b", 'with spaces in its value, type "KEY=A B"'),
        ("model==resnet50", "model is a name, and model=? lists the options"),
        ("=x", "names no key"),
        ("training.epochs=größe", "training.epochs does not take text"),
        ("protocol.side=[32", "a list is typed as \"KEY=[A,'B C']\""),
        ("checkpoint=['a,b',größe]", "a list is typed as"),
        ("data.root=[it's]", "type \"data.root='[it\\'s]'\""),
        ("checkpoint=[/a b/c=d.ckpt,größe.ckpt]", """type "checkpoint=['/a b/c=d.ckpt','größe.ckpt']\""""),
        ("data.root=[a]", "is read as a list; to mean this text, type \"data.root='[a]'\""),
        ("name=1e3", "is read as the number 1000.0"),
        ("name=true", "is read as true or false"),
        ("+model.kwargs.act=größe", "type \"+model.kwargs.act='größe'\""),
    ],
)
def test_a_refused_word_is_answered_with_what_to_type_instead(word, words):
    with pytest.raises(UserError) as error:
        check_words([word], Config)
    assert str(error.value).startswith(f"{word}: ") and words in str(error.value)


@pytest.mark.parametrize("word", ["name=12", "name=null", "name=007", "data.root=/a\\=b", "seed=0,1", "runs='a b'"])
def test_words_that_hydra_reads_correctly_pass_unchanged(word):
    assert check_words([word], Config) == [word]


def test_overrides_of_a_run_are_parsed_as_by_hydra(composed, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(composed("experiment=lenet5_digits"))))
    typed = ["protocol='five_crop'", "++data.root='/größe'", "output='~/a'"]
    config = config_of_run(tmp_path, typed, conf=CONF)
    assert (config.protocol.name, config.data.root, config.output) == ("five_crop", "/größe", expand_home("~/a"))


def test_an_option_from_config_dir_applies_to_a_run(composed, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(composed("experiment=lenet5_digits"))))
    (tmp_path / "own" / "protocol").mkdir(parents=True)
    mine = (CONF / "protocol" / "center.yaml").read_text().replace("softmax", "logits")
    (tmp_path / "own" / "protocol" / "mine.yaml").write_text(mine)
    got: list[Config] = []
    main = command("evaluate", EvaluateConfig)(lambda _: got.append(config_of_run(tmp_path, overrides(), conf=CONF)))
    with pytest.raises(SystemExit, match="0"):
        main(["protocol=mine", "--config-dir", str(tmp_path / "own")])
    assert (got[0].protocol.name, got[0].protocol.average, got[0].protocol.size) == ("center", "logits", 32)

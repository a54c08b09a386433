"""Composing many configurations at once gives what Hydra composes for each alone, and reads each file once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import open_dict

from tencrop.cli.choices import CONF
from tencrop.cli.compose import Composer
from tencrop.cli.recipe_loader import RecipeLoader
from tencrop.config import Config, UserError, validate

# An own recipe, the same with values, a replaced group, a file that starts from another, no experiment
SAMPLE = (
    ("experiment=vgg_d",),
    ("experiment=vgg_d", "augmentation.side=[256,512]", "protocol.side=384"),
    ("model=regnety_320", "optimizer=adamw"),
    ("experiment=alexnet_figure1_tanh", "+model.kwargs.lrn=false"),
    ("model=resnet50", "experiment=null"),
)


def composed_by_hydra(words: Sequence[str]) -> Config:
    loader = RecipeLoader(create_config_search_path(str(CONF)))
    node = loader.load_configuration("train", list(words), run_mode=RunMode.RUN)
    with open_dict(node):
        del node["hydra"]
    return validate(node, Config)


def test_one_composer_gives_what_hydra_gives_for_each() -> None:
    composer = Composer(CONF)
    expected = [composed_by_hydra(words) for words in SAMPLE]
    assert [composer.compose(words) for words in SAMPLE] == expected
    assert [composer.compose(words) for words in SAMPLE] == expected, "a composition changes nothing for the next"


def test_a_composer_reads_a_file_once(tmp_path: Path) -> None:
    conf, words = shutil.copytree(CONF, tmp_path / "conf"), ["model=resnet50", "experiment=null"]
    composer, file = Composer(conf), conf / "train.yaml"
    before = composer.compose(words)
    file.write_text(re.sub(r"\bseed: .*", "seed: 7", file.read_text()))
    assert composer.compose(words) == before
    assert Composer(conf).compose(words).seed == 7


@pytest.mark.parametrize("word", ["optimizer.lrr=1", "no_such_key=1", "model=no_such_model", "seed=1,2"])
def test_a_mistake_is_told_in_one_sentence(word: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"train.py experiment=vgg_d {word}: ")) as error:
        Composer(CONF).compose(["experiment=vgg_d", word])
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_refused_outside_of_a_command(tmp_path):
    """In a process of its own: Hydra reads files by the class that was registered first."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "experiment" / "lenet5_digits.yaml").write_bytes(b"\x80\x02")
    code = "import sys, pathlib; from tencrop.cli.compose import compose_training\n"
    code += "compose_training(['experiment=lenet5_digits'], pathlib.Path(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", code, str(conf)], capture_output=True, text=True)
    assert "UserError" in result.stderr and "lenet5_digits.yaml: line 1: is not UTF-8" in result.stderr

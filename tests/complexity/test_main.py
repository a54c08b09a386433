"""python -m tencrop.complexity as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tencrop.complexity.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """run(arguments) -> exit code, stdout, stderr."""

    def typed(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tencrop.complexity", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return typed


def test_all_networks_have_one_line_each():
    command = [sys.executable, "-m", "tencrop.complexity"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "138,357,544" in next(line for line in result.stdout.splitlines() if line.startswith("vgg_d "))


def test_a_network_at_another_size_with_other_arguments(run):
    exit_code, output, _ = run(
        "model=vgg_a", "image_size=64", "+model.kwargs.img_size=64", "num_classes=7", "format=json"
    )
    assert exit_code == 0
    data = json.loads(output)
    assert (data["model"], data["image_size"]) == ("vgg_a", 64)
    assert data["layers"][-1]["output"] == "7"


def test_the_exit_code_tells_whether_a_table_agrees(run):
    exit_code, output, _ = run("sizes=vgg_table2")
    assert exit_code == 0 and "Of 12: 12 equal" in output
    slip = "sizes.rows=[{row: A, model: vgg_a, value: '131'}]"
    exit_code, output, _ = run("sizes=vgg_table2", slip, "format=csv")
    assert exit_code == 1 and "DIFFERS" in output


MISTAKES = {
    "misspelled model": (["model=vgg_f"], "there is no conf/model/vgg_f.yaml; did you mean"),
    "misspelled table": (["sizes=vgg_table"], "there is no conf/sizes/vgg_table.yaml; did you mean vgg_table2"),
    "misspelled name": (["model=timm", "model.name=resnet5O"], "did you mean resnet50"),
    "misspelled format": (["format=jsn"], "format=jsn: must be json"),
    "key": (["model=vgg_a", "image_sise=3"], "image_sise: there is no such key"),
    "size": (["model=vgg_a", "image_size=100"], "image_size=100: vgg_a does not take images of 100 x 100"),
    "no size": (["model=vgg_a", "image_size=0"], "image_size=0: must be above 0"),
    "both": (["model=vgg_a", "sizes=vgg_table2"], "model and sizes: give one of the two"),
    "argument": (["model=vgg_a", "+model.kwargs.depth=3"], "depth"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_code_2(mistake, run):
    arguments, words = MISTAKES[mistake]
    exit_code, _, error = run(*arguments)
    assert exit_code == 2
    lines = error.strip().splitlines()
    assert len(lines) == 1 and words in lines[0], error

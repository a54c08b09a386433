"""Which file training.init and training.distill mean, without torch."""

import json
import re

import pytest

from tencrop.config import UserError
from tencrop.config.initialization import source_file, teacher_file
from tencrop.config.schema import Distill, Init


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "resnet18" / "seed0-00000000"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "weights.pth"):
        (folder / name).touch()
    return folder


def test_a_run_folder_means_its_last_checkpoint(run, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    assert source_file(Init(str(run)), tmp_path) == teacher_file(Distill(str(run)), tmp_path) == last
    best = run / "checkpoints" / "best.ckpt"
    assert source_file(Init(str(best)), tmp_path) == teacher_file(Distill(str(best)), tmp_path) == best


def test_a_missing_source_is_no_matter_for_a_run_with_checkpoints(run, tmp_path):
    assert source_file(Init("gone.ckpt"), run) is None and source_file(Init(), tmp_path) is None
    with pytest.raises(UserError, match=r"training\.init\.checkpoint=gone\.ckpt: there is no file gone\.ckpt; give"):
        source_file(Init("gone.ckpt"), tmp_path)


def test_the_network_of_a_teacher_is_named_once(run, tmp_path):
    plain = str(run / "weights.pth")
    assert teacher_file(Distill(plain, model="resnet18"), tmp_path).name == "weights.pth"
    with pytest.raises(UserError, match=r"weights\.pth: is not in a run folder; name its network with training\.dist"):
        teacher_file(Distill(plain), tmp_path)
    with pytest.raises(UserError, match=r"training\.distill\.model=resnet18: the run folder .* names the network alr"):
        teacher_file(Distill(str(run), model="resnet18"), tmp_path)
    with pytest.raises(UserError, match=r"training\.distill\.teacher=gone: there is no file gone; give a run folder"):
        teacher_file(Distill("gone", model="resnet18"), tmp_path)


@pytest.mark.parametrize("status", ["running", "interrupted", "diverged"])
def test_the_file_of_an_unfinished_run_must_be_named(run, tmp_path, status):
    last = run / "checkpoints" / "last.ckpt"
    (run / "manifest.json").write_text(json.dumps({"result": {"status": status}}))
    sentence = (
        f"={run}: the training of this run folder is not complete ({status}); train it to its end, or name the file to"
        " use its weights as they are: "
    )
    with pytest.raises(
        UserError, match=re.escape(f"training.init.checkpoint{sentence}training.init.checkpoint={last}")
    ):
        source_file(Init(str(run)), tmp_path)
    with pytest.raises(UserError, match=re.escape(f"distill.teacher{sentence}training.distill.teacher={last}")):
        teacher_file(Distill(str(run)), tmp_path)
    assert source_file(Init(str(last)), tmp_path) == teacher_file(Distill(str(last)), tmp_path) == last
    # a run that was begun from it continues
    assert source_file(Init(str(run)), run) == teacher_file(Distill(str(run)), run) == last
    (run / "manifest.json").write_text(json.dumps({"result": {"status": "complete"}}))
    assert source_file(Init(str(run)), tmp_path) == teacher_file(Distill(str(run)), tmp_path) == last

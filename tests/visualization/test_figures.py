"""The command from arguments to files, for an untrained model and for a run on the digits."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from tencrop.cli.choices import CONF
from tencrop.config import Config, UserError, VisualizationConfig, validate
from tencrop.data.store.manifest import open_split
from tencrop.evaluation.targets import evaluation_targets
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import build_model
from tencrop.training.checkpoints import AtomicCheckpointIO
from tencrop.visualization import figures
from tencrop.visualization.figures import draw_model, draw_run
from tencrop.visualization.record import load_record
from tencrop.visualization.trained_model import load_trained_model, select_images

OF_A_RUN = ["architecture", "receptive_field", "retrieval", "occlusion", "patches"]


@pytest.fixture
def config(prepared_digits: Path, tmp_path: Path):
    """config("figure=occlusion", ...): LeNet-5 on the digits with weights of seed 3."""
    torch.manual_seed(3)

    def build(*words: str) -> VisualizationConfig:
        place = [f"data.root={prepared_digits}", f"weights={tmp_path}/weights.pth", f"output={tmp_path}/out"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = compose(
                "visualization", ["experiment=lenet5_digits", "hardware=cpu", "hardware.workers=1", *place, *words]
            )
            found = validate(node, VisualizationConfig)
        torch.save(build_model(found.model, num_classes=10).state_dict(), tmp_path / "weights.pth")
        return found

    return build


def draw(config: VisualizationConfig) -> list[Path]:
    plain = Config(**{field.name: getattr(config, field.name) for field in fields(Config)})
    (member,) = evaluation_targets(plain, [])
    return list(draw_run(member, config, command="python -m tencrop.visualization"))


def test_an_unwritable_folder_is_reported_before_the_network_is_built(config, tmp_path, read_only, monkeypatch):
    (tmp_path / "figures").mkdir()
    found = config("figure=occlusion", f"output={read_only(tmp_path / 'figures')}")

    def fail(*_, **__):
        raise AssertionError("it was built")

    monkeypatch.setattr(figures, "load_trained_model", fail)
    monkeypatch.setattr(figures, "build_model", fail)
    unwritable = r"\.svg: cannot be written \(the file system is read-only\); .* output=DIR$"
    with pytest.raises(UserError, match=unwritable):
        draw(found)
    with pytest.raises(UserError, match=unwritable):
        list(draw_model(found, "architecture", command=""))


def test_all_figures_of_a_run(config, tmp_path, texts_of) -> None:
    paths = draw(config("candidates=64"))
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in OF_A_RUN for kind in ("svg", "png")]
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    for name in OF_A_RUN:
        record = load_record(tmp_path / "out" / f"{name}.json")
        assert record.model == "lenet5" and record.caption and record.command == "python -m tencrop.visualization"
        assert record.weights_sha256 == (None if name == "architecture" else weights_sha256(state))
        assert texts_of(tmp_path / "out" / f"{name}.svg")
    assert "among 64 searched" in load_record(tmp_path / "out" / "retrieval.json").caption
    before = {path: path.read_bytes() for path in paths[6:8]}
    again = draw(config("figure=occlusion"))
    assert {path: path.read_bytes() for path in again} == before, "the same weights give the same figures"


def test_named_images_and_layers(config, tmp_path, texts_of, prepared_digits) -> None:
    paths = draw(config("figure=occlusion", "images=[3,14]"))
    labels = open_split(prepared_digits, "val").labels
    assert texts_of(paths[0])[:1] == [str(labels[3])] and str(labels[14]) in texts_of(paths[0])
    draw(config("figure=receptive_field", "layer=c1"))
    assert "Receptive field of the center of c1" in texts_of(tmp_path / "out" / "receptive_field.svg")
    assert "extent 5 × 5 of 32 × 32" in texts_of(tmp_path / "out" / "receptive_field.svg")


@pytest.mark.parametrize(
    ("words", "label"),
    [((), "before training"), (("training.init.checkpoint=/gone",), "random weights"), (None, "random weights")],
    ids=["from the seed", "from a checkpoint", "from another program"],
)
def test_the_weights_of_the_seed_are_called_those_before_training_only_if_they_were(
    words, label, config, tmp_path, texts_of
) -> None:
    found = config("figure=receptive_field", *(words or ()))
    if words is not None:
        state = torch.load(tmp_path / "weights.pth", weights_only=True)
        facts = {"format": 2, "seed": 0, "step": 1, "total_steps": 1, "mean": [20.0] * 3, "std": [200.0] * 3}
        content = {"state_dict": {f"model.{name}": value for name, value in state.items()}, "tencrop": facts}
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
        found = replace(found, weights=str(tmp_path / "last.ckpt"))
    draw(found)
    panels = {"before training", "random weights"} & set(texts_of(tmp_path / "out" / "receptive_field.svg"))
    assert panels == {label}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("figure=attention",), "lenet5 has no layer of timm's Attention class"),
        (("figure=occlusion", "images=[500]"), r"images=\[500\]: the val split has images 0 to 499"),
        (("figure=patches", "layer=f6"), "layer=f6: has no maps as output; choose one of c1, s2"),
    ],
)
def test_impossible_figures_are_refused(words, sentence, config) -> None:
    with pytest.raises(UserError, match=sentence):
        draw(config(*words))


def test_a_model_without_a_run(composed, tmp_path, texts_of) -> None:
    config = replace(composed("model=vgg_d", "+model.kwargs.width=0.1"), output=str(tmp_path))
    svg, _ = draw_model(config, "architecture", command="python")
    assert "vgg_d" in texts_of(svg) and "14 × 14 × 51" in texts_of(svg)
    assert load_record(tmp_path / "architecture.json").weights_sha256 is None


def test_a_broken_result_is_left_out_of_the_tradeoff_and_named(composed, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "center.result.json").write_text("{}")
    config = replace(composed("runs=runs"), output=str(tmp_path))
    assert list(draw_model(config, "tradeoff", command=""))
    assert capsys.readouterr().err.startswith("error: left out of the figure: runs/center.result.json: is no result")


def test_chosen_images_are_of_many_classes(prepared_digits) -> None:
    split = open_split(prepared_digits, "val")
    ten = select_images(split, None, num_images=10)
    assert sorted(split.labels[ten]) == list(range(10))
    everything = select_images(split, None, num_images=10_000)
    assert sorted(everything) == list(range(500)) and np.array_equal(everything[:10], ten)


def test_the_initial_weights_are_those_that_training_draws(config, composed) -> None:
    wanted = config("seed=5")
    plain = Config(**{field.name: getattr(wanted, field.name) for field in fields(Config)})
    model = load_trained_model(evaluation_targets(plain, [])[0])
    torch.manual_seed(5)
    expected = build_model(wanted.model, num_classes=10).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.initial.state_dict().items())


def test_command_line(tmp_path) -> None:
    command = [sys.executable, "-m", "tencrop.visualization"]
    done = subprocess.run(
        [*command, "figure=architecture", "model=lenet5", "image_size=32", "data=digits", f"output={tmp_path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{tmp_path}/architecture.svg", f"{tmp_path}/architecture.png"]
    written = load_record(tmp_path / "architecture.json").command
    assert written.startswith("python -m tencrop.visualization figure=architecture model=lenet5")
    wrong = subprocess.run([*command, "figure=architectur"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr == "error: figure=architectur: must be architecture\n"

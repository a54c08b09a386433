"""evaluate.py's command line: which weights, under which configuration, and where score files go."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tencrop.config import Config, UserError
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation.targets import check_ensemble, check_one_protocol, evaluation_targets, score_files
from tencrop.records import run_folder as records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_folder(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    """A run folder with a checkpoint, as train.py leaves it (the checkpoint is empty: nothing here reads it)."""
    config = make_config("protocol=five_crop", "seed=5")
    folder = records.run_folder(config, read_manifest(config.data.root))
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


def test_a_checkpoint_is_evaluated_with_its_runs_configuration(make_config, run_folder: Path, monkeypatch) -> None:
    path = run_folder / "checkpoints" / "last.ckpt"
    typed = [f"checkpoint={path}", "protocol=ten_crop", "hardware.devices=2"]
    config = make_config("model=resnet50")  # what evaluate.py alone would compose
    config.checkpoint = str(path)
    (member,) = evaluation_targets(config, typed)
    assert member.config.model.name == "lenet5_dense" and member.config.seed == 5
    assert member.config.protocol.name == "ten_crop" and member.config.protocol.side == 36
    assert member.config.hardware.devices == 2
    assert member.out is not None and member.out.resolve() == run_folder.resolve() / "predictions"
    monkeypatch.chdir(run_folder / "checkpoints")
    config.checkpoint = "last.ckpt"
    (member,) = evaluation_targets(config, [*typed[:1], "training.precision=bf16"])
    assert (member.config.training.precision, member.own_precision) == ("bf16", "fp32"), "named in the scores' file"
    (member,) = evaluation_targets(config, typed[:1])
    assert member.out == run_folder / "predictions"
    assert member.config.protocol.name == "five_crop", "the run's own"
    with pytest.raises(UserError, match="model=resnet50: the run of the checkpoint fixes this key"):
        evaluation_targets(config, [*typed, "model=resnet50"])


def test_a_loader_that_is_not_installed_is_refused_before_anything_is_computed(make_config, run_folder, monkeypatch):
    monkeypatch.setattr("tencrop.config.loader.find_spec", lambda name: None)
    config = make_config()
    config.checkpoint = str(run_folder / "checkpoints" / "last.ckpt")
    evaluation_targets(config, [])
    with pytest.raises(UserError, match=r"data\.loader=ffcv: ffcv is not installed; install it with pip install"):
        evaluation_targets(config, ["data.loader=ffcv"])


def test_without_a_checkpoint_the_run_of_the_same_command_is_evaluated(make_config, run_folder: Path) -> None:
    (member,) = evaluation_targets(make_config("protocol=center", "seed=5"), ["seed=5", "protocol=center"])
    assert member.path == run_folder / "checkpoints" / "last.ckpt" and member.out == run_folder / "predictions"
    typed = ["seed=6", "protocol=center", "protocol.size=30", "output=x", "training.epochs=3"]
    with pytest.raises(UserError, match=r"train it with: python train\.py seed=6 training\.epochs=3$"):
        evaluation_targets(make_config("seed=6", "training.epochs=3"), typed)


def test_scores_on_other_data_are_not_written_to_the_run_folder(make_config, run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    manifest["data"]["splits"]["val"]["source_fingerprint"] = "of other images of these classes"
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    config = make_config()
    config.checkpoint = str(run_folder / "checkpoints" / "last.ckpt")
    (member,) = evaluation_targets(config, [f"checkpoint={config.checkpoint}"])
    assert member.out is None and member.num_classes == 6
    config.output = "here"
    (member,) = evaluation_targets(config, [f"checkpoint={config.checkpoint}", "output=here"])
    assert member.out == Path("here")


def test_members_of_an_ensemble(make_config, run_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.ckpt"
    elsewhere.touch()
    config = make_config()
    config.checkpoint = [str(run_folder / "checkpoints" / "last.ckpt"), str(elsewhere)]
    config.output = "ensemble"
    first, second = evaluation_targets(config, ["output=ensemble"])
    assert first.out == run_folder / "predictions" and first.config.protocol.name == "five_crop"
    assert second.out is None and second.config.protocol.name == "center", "output is the ensemble's"
    with pytest.raises(UserError, match=r"protocol\.average: the members differ \(logits, softmax\)"):
        check_ensemble([first, replace(second, config=make_config("protocol.average=logits"))])
    with pytest.raises(UserError, match=r"elsewhere\.ckpt is listed twice with the protocol center"):
        check_ensemble([first, second, replace(second, path=tmp_path / "x" / ".." / "elsewhere.ckpt")])
    check_ensemble([first, second])
    config.checkpoint = []
    with pytest.raises(UserError, match="names no checkpoint"):
        evaluation_targets(config, [])


def test_a_checkpoint_under_two_protocols(make_config, run_folder: Path, tmp_path: Path) -> None:
    config, path = make_config(), str(run_folder / "checkpoints" / "last.ckpt")
    config.checkpoint = [path, path]
    typed = ["protocol.side=40", "protocol=[five_crop,grid_crop]"]
    members = evaluation_targets(config, typed)
    assert [member.config.protocol.name for member in members] == ["five_crop", "grid_crop"]
    assert [member.config.protocol.side for member in members] == [40, 40]
    check_ensemble(members)
    for protocols in ("[grid_crop,grid_crop]", "grid_crop"):
        with pytest.raises(UserError, match=r"last\.ckpt is listed twice with the protocol grid_crop"):
            check_ensemble(evaluation_targets(config, [f"protocol={protocols}"]))
    with pytest.raises(UserError, match="names 3 protocols for 2 checkpoints"):
        evaluation_targets(config, ["protocol=[center,five_crop,ten_crop]"])
    with pytest.raises(UserError, match=r"there is no protocol six_crop; choose among center, crops_144"):
        evaluation_targets(config, ["protocol=[center,six_crop]"])
    config.checkpoint[1] = str(tmp_path / "elsewhere.ckpt")
    Path(config.checkpoint[1]).touch()
    with pytest.raises(UserError, match=r"elsewhere\.ckpt: is not in a run folder, so a list of protocols does not"):
        evaluation_targets(config, ["protocol=[center,five_crop]"])
    for checkpoint in (path, [path], None):
        config.checkpoint = checkpoint
        with pytest.raises(UserError, match="names 2 protocols for 1 checkpoint; name one for each"):
            evaluation_targets(config, ["protocol=[center,five_crop]"])


def test_training_takes_one_protocol() -> None:
    check_one_protocol(["protocol=center", "seed=1"])
    with pytest.raises(
        UserError, match=r"^protocol=\[center,five_crop\]: only evaluate\.py takes several .* choose one"
    ):
        check_one_protocol(["seed=1", "protocol=[center,five_crop]"])


def test_score_files_that_cannot_be_averaged(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.touch()

    def refused(scores: list[Path], match: str, *typed: str) -> None:
        names = list(map(str, scores))
        with pytest.raises(UserError, match=match):
            score_files(names, [f"scores=[{','.join(names)}]", *typed])

    refused(files[:1], "needs at least two score files")
    refused([], "needs at least two score files")
    refused([*files, files[0]], r"a\.safetensors is listed twice")
    refused([files[0], tmp_path / "c.safetensors"], r"c\.safetensors: there is no such file")
    refused([files[0], tmp_path], r"is a folder; name a file such as RUN/predictions/center\.safetensors")
    refused(files, "protocol=dense: .* does not apply; leave it out", "protocol=dense")
    refused(files, "checkpoint=x: .* does not apply; leave it out", "checkpoint=x")
    typed = [f"scores=[{files[0]},{files[1]}]", "protocol.average=logits", "output=x"]
    assert score_files(list(map(str, files)), typed) == files


def test_what_is_missing_is_refused(make_config, tmp_path: Path) -> None:
    config = make_config()
    config.checkpoint = "missing.ckpt"
    with pytest.raises(UserError, match=r"checkpoint=missing\.ckpt: there is no such file"):
        evaluation_targets(config, [])
    config.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match=r": is a folder; name a file such as RUN/checkpoints/last\.ckpt"):
        evaluation_targets(config, [])
    (tmp_path / "elsewhere.ckpt").touch()
    config.checkpoint = str(tmp_path / "elsewhere.ckpt")
    with pytest.raises(UserError, match=r"is not in a run folder .* name them with model=NAME data=NAME"):
        evaluation_targets(config, ["data=digits", f"checkpoint={config.checkpoint}"])
    assert evaluation_targets(config, ["model.name=lenet5_dense"])[0].path.name == "elsewhere.ckpt"
    config = make_config(f"data.root={tmp_path}/nothing")
    config.weights = str(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth: there is no such file"):
        evaluation_targets(config, [])
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match=r"holds no prepared data .* python prepare\.py"):
        evaluation_targets(config, [])


def evaluate(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "evaluate.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)


def test_the_command_refuses_in_one_line_before_torch_is_imported(
    prepared_501, run_folder: Path, tmp_path: Path
) -> None:
    words = ("data=imagefolder", f"data.root={prepared_501}", "model=lenet5_dense")
    path = run_folder / "checkpoints" / "last.ckpt"
    for more, told in (
        ([*words, "checkpoint=missing.ckpt"], "there is no such file"),
        (words, "there is no such checkpoint"),
        ([*words, "weights=a", "checkpoint=b"], "give one of the two"),
        ([*words, "protocol=eleven_crop"], "there is no conf/protocol/eleven_crop.yaml"),
        ([f"checkpoint=[{path},{path}]"], "is listed twice"),
        ([f"checkpoint={path}", "hardware.nodes=2"], "start it under srun or torchrun"),
    ):
        done = evaluate(*more, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        # the run of these values is that of a recipe, which is named first
        assert done.stdout.startswith("recipe: ") if more == words else done.stdout == "", done
        assert done.stderr.startswith("error: ") and told in done.stderr
    probe = "import sys, tencrop.evaluation.targets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_a_protocol_is_checked_against_the_image_size_of_the_run(run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "checkpoints" / "last.ckpt"  # of images of 32 pixels, where the default recipe has 224
    done = evaluate(f"checkpoint={path}", "protocol.side=[40,30]", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "", done
    sentence = "protocol.side=30: a crop of 32 pixels does not fit; raise protocol.side or lower protocol.size"
    assert done.stderr == f"error: {sentence}\n"


def test_the_command_evaluates_a_run_prints_its_table_and_tracks_it(
    make_config, run_folder, new_network, save_checkpoint, tmp_path: Path
) -> None:
    config = make_config("seed=5")
    path = save_checkpoint(run_folder / "checkpoints" / "last.ckpt", config, new_network(config))
    words = (f"checkpoint={path}", "protocol=flip_pair", "protocol.side=[34]", "hardware=cpu")
    done = evaluate(*words, "tracker=tensorboard", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done
    result = json.loads((run_folder / "predictions" / "flip_pair-side34.result.json").read_text())
    assert f"{100 * result['top1_error']:.2f}" in done.stdout and "501" in done.stdout
    assert f"{run_folder}/predictions/flip_pair-side34.safetensors" in done.stdout
    (events,) = (run_folder / "tracking").glob("events*")
    assert b"flip_pair-side34/top1_error" in events.read_bytes()
    # from the scores that were saved
    done = evaluate(*words, "protocol.average=logits", "tracker=tensorboard", cwd=tmp_path)
    assert (run_folder / "predictions" / "flip_pair-side34-logits.result.json").is_file(), done
    tracked = b"".join(path.read_bytes() for path in (run_folder / "tracking").glob("events*"))
    assert b"flip_pair-side34-logits/top1_error" in tracked
    assert b"error_table" in events.read_bytes() and b"flip_pair" in events.read_bytes()


def test_other_classes_than_the_runs_are_refused(make_config, run_folder: Path) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    manifest["data"]["classes"] = ["others"] * 6
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="its classes are not those that"):
        evaluation_targets(make_config("seed=5", "protocol=five_crop"), [])


def test_a_broken_manifest_of_the_run_is_named(make_config, run_folder: Path) -> None:
    (run_folder / "manifest.json").write_text('{"data": {"classes": []}}')
    with pytest.raises(UserError, match=r"manifest\.json: not the manifest of a run folder \(data.name is missing\)"):
        evaluation_targets(make_config("seed=5", "protocol=five_crop"), [])
    (run_folder / "manifest.json").unlink()
    (member,) = evaluation_targets(make_config("seed=5", "protocol=five_crop"), [])
    assert member.out == run_folder / "predictions"


def test_plain_weights_are_evaluated_in_float32_unless_a_precision_is_given(make_config, tmp_path) -> None:
    config = make_config("training.precision=bf16")
    (tmp_path / "weights.pth").touch()
    config.weights = str(tmp_path / "weights.pth")
    (member,) = evaluation_targets(config, ["weights=weights.pth"])
    assert member.config.training.precision == "fp32"
    (member,) = evaluation_targets(config, ["weights=weights.pth", "training.precision=bf16"])
    assert member.config.training.precision == "bf16"

"""From weights to result.json: what is written, what is reused, and what is refused."""

import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from safetensors.torch import save_file
from torch import nn

from tencrop.config import Config, UserError, derive_batches
from tencrop.data.store.beton import RAW, Beton
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation import evaluate as module
from tencrop.evaluation.errors import wilson_interval
from tencrop.evaluation.evaluate import evaluate_scores, evaluate_targets
from tencrop.evaluation.file_names import file_stem
from tencrop.evaluation.predictions import load_scores
from tencrop.evaluation.preprocessing import changed_normalization
from tencrop.evaluation.results import differences_from_training, load_result, protocol_label
from tencrop.evaluation.targets import EvaluationTarget
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.training.checkpoints import AtomicCheckpointIO
from tencrop.training.classifier import Classifier


@pytest.fixture(autouse=True)
def _evaluations_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_network_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function; after it is called, any forward pass fails the test."""

    def forbid() -> None:
        def fail(*_: Any) -> None:
            raise AssertionError("scores were computed again")

        monkeypatch.setattr(module, "score_split", fail)

    return forbid


def test_result_and_scores_are_written(make_config, new_network, save_checkpoint, evaluate, tmp_path) -> None:
    config = make_config("protocol=five_crop", "seed=3")
    network = new_network(config)
    checkpoint = save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", config, network)
    result = evaluate(config, checkpoint, tmp_path / "out")
    assert result == load_result(tmp_path / "out" / "five_crop.result.json")
    scores = load_scores(tmp_path / "out" / result["scores"])
    assert result["num_images"] == len(scores.index) == 501
    num_errors = int((scores.softmax_ranks >= 1).sum())
    assert result["top1_error"] == num_errors / 501
    assert tuple(result["top1_interval"]) == wilson_interval(num_errors, 501)
    assert result["top5_error"] == int((scores.softmax_ranks >= 5).sum()) / 501
    expected = {
        "protocol": "five_crop", "averaging": "softmax", "weights": "raw", "side": 36, "size": 32, "region": "whole",
        "seed": 3, "model": "lenet5_dense", "data": "imagefolder", "selection": "last", "views": 5,
        "weights_sha256": weights_sha256(network.state_dict()), "step": 7,
        "source_fingerprint": read_manifest(config.data.root)["splits"]["val"]["source_fingerprint"],
    }  # fmt: skip
    assert {key: result[key] for key in expected} == expected


def test_saved_scores_are_used_again(
    make_config, new_network, save_checkpoint, evaluate, no_network_runs, tmp_path
) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    first = evaluate(config, checkpoint, tmp_path)
    no_network_runs()
    assert evaluate(config, checkpoint, tmp_path) == first
    config.protocol.average = "logits"  # the same file has the other average
    assert evaluate(config, checkpoint, tmp_path)["averaging"] == "logits"
    assert {path.name for path in tmp_path.glob("*.json")} == {"center.result.json", "center-logits.result.json"}
    save_checkpoint(checkpoint, config, new_network(config, seed=1))
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(config, checkpoint, tmp_path)


@pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed")
def test_scores_of_ffcv_pixels_have_their_own_file(
    make_config, new_network, save_checkpoint, evaluate, no_network_runs, tmp_path
) -> None:
    config = make_config("data.loader=ffcv")
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    result = evaluate(config, checkpoint, tmp_path / "out")
    assert (result["loader"], result["scores"], result["num_images"]) == ("ffcv", "center-ffcv.safetensors", 501)
    no_network_runs()
    assert evaluate(config, checkpoint, tmp_path / "out") == result
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(make_config(), checkpoint, tmp_path / "out")


def test_scores_of_other_code_are_computed_again(
    make_config, new_network, save_checkpoint, evaluate, no_network_runs, monkeypatch, tmp_path
) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    evaluate(config, checkpoint, tmp_path)
    no_network_runs()
    monkeypatch.setattr(module, "code_sha256", lambda package, stages: "of another version")
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(config, checkpoint, tmp_path)


def test_a_folder_that_cannot_be_written_is_found_before_an_image_is_scored(
    make_config, new_network, save_checkpoint, evaluate, no_network_runs, read_only, tmp_path, monkeypatch
) -> None:
    config = make_config()
    one, other = (
        save_checkpoint(tmp_path / name / "last.ckpt", config, new_network(config, seed=seed))
        for seed, name in enumerate(("one", "other"))
    )
    (tmp_path / "out").mkdir()
    place = read_only(tmp_path / "out")
    no_network_runs()
    unwritable = r"scores.safetensors: cannot be written \(the file system is read-only\); .* output=DIR$"
    with pytest.raises(UserError, match=unwritable.replace("scores", "center")):
        evaluate(config, one, place / "predictions")
    manifest = read_manifest(config.data.root)
    with pytest.raises(UserError, match=unwritable):  # of a member
        evaluate_targets(
            [EvaluationTarget(config, one, manifest, tmp_path / "a"), EvaluationTarget(config, other, manifest, place)]
        )
    with pytest.raises(UserError, match=unwritable):  # of the ensemble
        config.output = str(place)
        evaluate_targets(
            [EvaluationTarget(config, one, manifest, None), EvaluationTarget(config, other, manifest, None)]
        )
    (tmp_path / "out" / "center.safetensors").mkdir()
    with pytest.raises(UserError, match=r"center\.safetensors: .*(directory|folder|no score file)"):
        evaluate(config, one, tmp_path / "out")


def test_scores_of_other_code_are_shown_from_a_read_only_folder(
    make_config, new_network, save_checkpoint, evaluate, no_network_runs, monkeypatch, read_only, tmp_path, capsys
) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    (tmp_path / "out").mkdir()
    result = evaluate(config, checkpoint, tmp_path / "out")
    no_network_runs()
    monkeypatch.setattr(module, "code_sha256", lambda package, stages: "of another version")
    shown = evaluate(config, checkpoint, read_only(tmp_path / "out"))
    assert shown["top1_error"] == result["top1_error"] and shown["code_sha256"] == result["code_sha256"]
    assert "computed by another version of the code" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_is_not_evaluated(
    name: str, make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / name, config, new_network(config))
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: is damaged"):
        evaluate(config, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_scores_are_computed_again(make_config, new_network, save_checkpoint, evaluate, tmp_path) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    first = evaluate(config, checkpoint, tmp_path)
    path = tmp_path / "center.safetensors"
    written = path.read_bytes()
    path.write_bytes(written[:-5] + bytes([written[-5] ^ 1]) + written[-4:])
    assert evaluate(config, checkpoint, tmp_path) == first and path.read_bytes() == written


def test_a_damaged_image_is_not_evaluated(
    make_config, new_network, save_checkpoint, evaluate, prepared_501, tmp_path
) -> None:
    """One bit of a pixel: the image decodes, and without a digest only its scores would be others."""
    root = Path(shutil.copytree(prepared_501, tmp_path / "data"))
    config = make_config(f"data.root={root}")
    path = save_checkpoint(tmp_path / "run" / "last.ckpt", config, new_network(config))
    content = bytearray((root / "val.beton").read_bytes())
    beton = Beton(root / "val.beton")
    assert beton.modes[17] == RAW
    content[int(beton.pointers[17]) + 1000] ^= 1
    (root / "val.beton").write_bytes(content)
    with pytest.raises(UserError, match=r"val\.beton: 1 of 501 images are not what was written: .* \(sample 17\)"):
        evaluate(config, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_ema_weights_are_evaluated_where_present(make_config, new_network, save_checkpoint, evaluate, tmp_path) -> None:
    config = make_config()
    raw, ema = new_network(config), new_network(config, seed=1)
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, raw, ema)
    result = evaluate(config, checkpoint, tmp_path)
    assert result["weights"] == "ema" and result["weights_sha256"] == weights_sha256(ema.state_dict())
    config.ema = False
    result = evaluate(config, checkpoint, tmp_path)
    assert result["weights"] == "raw" and result["weights_sha256"] == weights_sha256(raw.state_dict())
    assert {path.name for path in tmp_path.glob("*.json")} == {"center-ema.result.json", "center.result.json"}


def test_a_checkpoint_written_by_training_can_be_evaluated(make_config, new_network, evaluate, tmp_path) -> None:
    config = make_config("training.ema_decay=0.9", "training.global_batch=4")
    statistics = read_manifest(config.data.root)["statistics"]
    classifier = Classifier(
        config, new_network(config), statistics=statistics, batches=derive_batches(config), steps_per_epoch=2
    )
    assert classifier.ema is not None
    with torch.no_grad():
        next(classifier.ema.parameters()).add_(1)
    checkpoint: dict[str, Any] = {"state_dict": classifier.state_dict()}
    classifier.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "best.ckpt")
    for ema, key, stem in ((None, "ema_sha256", "center-best-ema"), (False, "weights_sha256", "center-best")):
        config.ema = ema
        result = evaluate(config, tmp_path / "best.ckpt", tmp_path)
        assert result["weights_sha256"] == checkpoint["tencrop"][key]
        assert result["scores"] == f"{stem}.safetensors" and result["selection"] == "best"
        assert result["label"] == f"lenet5_dense seed 0, step 0 of {2 * config.training.epochs}"


def test_nan_scores_are_refused_and_leave_nothing(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    config = make_config()
    network = new_network(config)
    nn.init.constant_(network.output.bias, float("nan"))
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, network)
    with pytest.raises(UserError, match="scores of 501 of 501 images are NaN"):
        evaluate(config, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_crop_size_that_the_network_does_not_take_is_refused(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    config = make_config("protocol.size=28")  # lenet5_dense was built for 32
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    with pytest.raises(UserError, match=r"protocol\.size=28: lenet5_dense does not take images of 28 x 28"):
        evaluate(config, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_constant_scores_are_100_percent_error(make_config, new_network, save_checkpoint, evaluate, tmp_path) -> None:
    config = make_config()
    network = new_network(config)
    for parameter in network.output.parameters():
        nn.init.zeros_(parameter)
    result = evaluate(config, save_checkpoint(tmp_path / "last.ckpt", config, network), tmp_path)
    assert result["top1_error"] == result["top5_error"] == 1.0 and result["top1_interval"][1] == 1.0


def test_a_checkpoint_of_another_network_is_refused(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    with pytest.raises(UserError, match=r"last\.ckpt: its weights do not fit resnet18 \(6 classes\): missing:"):
        evaluate(make_config("model=resnet18"), checkpoint, tmp_path)


def test_dataset_normalization_is_that_of_the_training(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    config = make_config("normalization.mean=dataset", "normalization.std=dataset")
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    evaluate(config, checkpoint, tmp_path)
    used = json.loads(load_scores(tmp_path / "center.safetensors").metadata["normalization"])
    assert used == {"mean": [1.0, 2.0, 3.0], "std": [50.0, 51.0, 52.0]}


def test_another_mean_than_that_of_the_training_is_named(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    """The configuration of the training says "dataset" and no numbers, so only the checkpoint knows them."""
    trained = make_config("normalization.mean=dataset", "normalization.std=[1,1,1]")
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", trained, new_network(trained))
    same = make_config("normalization.mean=[1,2,3]", "normalization.std=[1,1,1]")
    other = make_config("normalization.mean=[0,0,0]", "normalization.std=[1,1,1]")
    as_in_file = dataclasses.asdict(trained)
    for config, expected in ((trained, []), (same, []), (other, ["mean [0.0, 0.0, 0.0]"])):
        result = evaluate(config, checkpoint, tmp_path / "out")
        assert differences_from_training(result, as_in_file) == expected
        assert ("changed_normalization" in result) == bool(expected)
    # the run's own result is still there
    assert len(list((tmp_path / "out").glob("center-normalization????????.result.json"))) == 1
    assert "changed_normalization" not in load_result(tmp_path / "out" / "center.result.json")
    scores = tmp_path / "out" / result["scores"]
    joint = evaluate_scores(trained, [scores, shutil.copy(scores, tmp_path / "copy.safetensors")])
    members = joint.result["members"]
    assert [differences_from_training(joint.result | one, as_in_file) for one in members] == 2 * [expected]


@pytest.mark.parametrize(
    ("used", "trained", "typed", "changed"),
    [
        (
            {"mean": [0.1] * 3, "std": [1.0] * 3},
            {"mean": np.array([0.1] * 3, np.float32).tolist(), "std": [1.0] * 3},
            [],
            [],
        ),
        ({"mean": [0.1] * 3, "std": [1.0] * 3}, {"mean": [0.1] * 3, "std": [2.0] * 3}, [], ["std"]),
        ({"mean": [0.1] * 3, "std": [1.0] * 3}, {}, ["normalization"], ["mean", "std"]),
        ({"mean": [0.1] * 3, "std": [1.0] * 3}, {}, ["normalization.mean", "protocol.size"], ["mean"]),
        (
            {"mean": [9.0] * 3, "std": [1.0] * 3},  # the mean color of the image that was subtracted
            {"mean": [9.0] * 3, "std": [1.0] * 3, "mean_image_sha256": "ab"},
            [],
            ["mean"],
        ),
    ],
    ids=["rounded", "std", "all typed", "mean typed", "mean image"],
)
def test_which_normalization_changed(used: Any, trained: Any, typed: list[str], changed: list[str]) -> None:
    assert changed_normalization(used, trained, typed) == changed


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_plain_weights_of_both_libraries(library: str, suffix: str, make_config, prepared_photos, tmp_path) -> None:
    """ResNet-18 has the same parameter names in both libraries, so each evaluates a file of the other."""
    torch.manual_seed(0)
    build = {"torchvision": torchvision.models.resnet18, "timm": partial_timm}[library]
    network, path = build(num_classes=3), tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network.state_dict(), path)
    name = {"torchvision": "torchvision/resnet18", "timm": "resnet18"}[library]
    config = make_config("model=timm", f"model.name={name}", "model.bn_group=32", f"data.root={prepared_photos}")
    found = evaluate_targets([EvaluationTarget(config, path, read_manifest(prepared_photos), None)])
    assert len(found) == 1
    folder, result = found[0].out, found[0].result
    assert folder.parent == Path("evaluations") and folder.name.startswith(name.replace("/", "-"))
    assert result["num_images"] == 12 and result["weights_sha256"] == weights_sha256(network.state_dict())
    assert result["seed"] is None and result["label"] == path.name
    assert result["experiment"] is None


def partial_timm(num_classes: int) -> nn.Module:
    return timm.create_model("resnet18", num_classes=num_classes)


def test_an_ensemble_from_saved_scores(make_config, new_network, save_checkpoint, no_network_runs, tmp_path) -> None:
    config = make_config("protocol=flip_pair")
    manifest = read_manifest(config.data.root)
    members = []
    for seed in range(3):
        out = tmp_path / f"seed{seed}"
        own = replace(config, seed=seed)
        path = save_checkpoint(out / "last.ckpt", own, new_network(own, seed=seed))
        members.append(EvaluationTarget(own, path, manifest, out))
    one = evaluate_targets(members[:1])
    assert len(one) == 1
    first = evaluate_targets(members)
    no_network_runs()
    again = evaluate_targets(members)
    assert [found.result for found in again] == [found.result for found in first] and len(again) == 4
    joint = again[-1]
    mean = torch.stack([found.scores.softmax for found in again[:3]]).mean(0)
    torch.testing.assert_close(joint.scores.softmax, mean)
    assert joint.out.name.startswith("ensemble-") and (joint.out / "flip_pair.result.json").exists()
    assert sorted(joint.result["seed"]) == [0, 1, 2] and joint.result["protocol"] == "flip_pair"
    assert joint.result["label"] == "ensemble of 3" and joint.result["weights_sha256"].count(" + ") == 2
    files = [found.out / found.result["scores"] for found in (again[2], again[0], again[1])]
    reordered = evaluate_scores(config, files)
    assert reordered.result == joint.result and reordered.out == joint.out, "in any order, one ensemble in one file"
    assert torch.equal(reordered.scores.softmax, joint.scores.softmax)


def test_one_network_under_two_protocols(make_config, new_network, save_checkpoint, no_network_runs, tmp_path) -> None:
    """The mean over members, each member's views averaged first: 1 view counts as much as 10."""
    config = make_config("protocol=center", "protocol.filter=bilinear")
    network = new_network(config)
    path = save_checkpoint(tmp_path / "last.ckpt", config, network)
    other = make_config("protocol=ten_crop", "protocol.side=40", "protocol.filter=bilinear")
    manifest = read_manifest(config.data.root)
    members = [EvaluationTarget(own, path, manifest, tmp_path / "predictions") for own in (config, other)]
    center, ten_crop, joint = evaluate_targets(members)
    for average in ("softmax", "logits"):
        mean = (getattr(center.scores, average).numpy() + getattr(ten_crop.scores, average).numpy()) / np.float32(2)
        np.testing.assert_array_equal(getattr(joint.scores, average).numpy(), mean)
    labels = joint.scores.labels.numpy()
    softmax = joint.scores.softmax.numpy()
    is_wrong = (softmax >= softmax[np.arange(501), labels][:, None]).sum(axis=1) > 1
    assert joint.result["top1_error"] == is_wrong.mean()
    assert joint.result["label"] == "1 network in 2 evaluations"
    assert joint.result["protocol"] == "center + ten_crop" and joint.result["side"] == "36 + 40"
    assert protocol_label(joint.result) == "center 32 of 36 px + ten_crop 32 of 40 px, softmax"
    assert joint.result["scores"] == "center-bilinear+ten_crop-side40-bilinear.safetensors"
    facts = [{key: one[key] for key in ("protocol", "side", "views", "seed")} for one in joint.result["members"]]
    assert facts == [
        {"protocol": "center", "side": 36, "views": 1, "seed": 0},
        {"protocol": "ten_crop", "side": 40, "views": 10, "seed": 0},
    ]
    # the same ensemble from the score files, without network, checkpoint and data
    no_network_runs()
    path.unlink()
    plain = make_config(f"data.root={tmp_path}/gone")
    files = [one.out / one.result["scores"] for one in (center, ten_crop)]
    again = evaluate_scores(plain, files)
    assert again.result["members"] == joint.result["members"] and again.result["seed"] == [0, 0]
    assert torch.equal(again.scores.softmax, joint.scores.softmax) and again.out == joint.out
    changed = {key for key in joint.result if again.result[key] != joint.result[key]}
    assert changed == set()
    for file in files:  # files alone do not tell which run they are of
        file.with_suffix(".result.json").unlink()
    alone = evaluate_scores(plain, files)
    assert alone.result["checkpoint"] == [None, None] and alone.result["top1_error"] == joint.result["top1_error"]
    with pytest.raises(UserError, match="is the mean of several members; list those instead"):
        evaluate_scores(plain, [files[0], joint.out / joint.result["scores"]])


def _evaluate_in_group(rank: int, config: Config, checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{out}/meeting", rank=rank, world_size=2)
    manifest = read_manifest(config.data.root)
    for _ in range(2):  # computed, then found saved
        result = module.evaluate_run(config, manifest=manifest, checkpoint=checkpoint, out=out)
        assert (result is None) == (rank > 0)
    dist.destroy_process_group()


def test_the_processes_of_a_training_evaluate_together(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    """As train.py does after a training on two processes: a process group exists, and rank 0 writes."""
    config = make_config("hardware.devices=2")
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    (tmp_path / "together").mkdir()
    mp.spawn(_evaluate_in_group, (config, checkpoint, tmp_path / "together"), nprocs=2)
    config.hardware.devices = 1
    alone = evaluate(config, checkpoint, tmp_path / "alone")
    together = load_result(tmp_path / "together" / "center.result.json")
    assert together["top1_error"] == alone["top1_error"] and together["num_images"] == 501


def _evaluate_under_torchrun(rank: int, port: int, config: Config, checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
    os.environ.update({name: str(value) for name, value in (names | meeting).items()})
    result = module.evaluate_run(config, manifest=read_manifest(config.data.root), checkpoint=checkpoint, out=out)
    assert (result is None) == (rank > 0)


def test_under_torchrun_only_the_first_process_reads_saved_scores(
    make_config, new_network, save_checkpoint, evaluate, tmp_path
) -> None:
    """As train.py does for a complete run: there is no process group yet."""
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    evaluate(config, checkpoint, tmp_path / "out")
    config.hardware.devices = 2
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    mp.spawn(_evaluate_under_torchrun, (port, config, checkpoint, tmp_path / "out"), nprocs=2)


def test_another_rank_without_a_process_group_does_nothing(
    make_config, new_network, save_checkpoint, tmp_path, monkeypatch
) -> None:
    config = make_config()
    checkpoint = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    monkeypatch.setenv("SLURM_PROCID", "1")
    manifest = read_manifest(config.data.root)
    assert module.evaluate_run(config, manifest=manifest, checkpoint=checkpoint, out=tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


def test_file_names_contain_what_differs_from_the_defaults(make_config) -> None:
    assert file_stem(make_config("protocol=ten_crop")) == "ten_crop"
    assert file_stem(make_config("protocol.side=40", "protocol.filter=bilinear")) == "center-side40-bilinear"
    assert file_stem(make_config("protocol.side=null", "protocol.size=30")) == "center-sidekept-size30"
    assert file_stem(make_config("protocol=dense", "protocol.side=[40,48]")) == "dense-side40-48"
    assert file_stem(make_config("protocol=crops_144")) == "crops_144"
    assert file_stem(make_config("protocol.resize=warp")) == "center-warp"
    assert file_stem(make_config("protocol.resize=warp", "protocol.side=40")) == "center-warp-side40"
    assert file_stem(make_config("protocol.resize=central_fraction", "protocol.side=null")) == "center-central_fraction"
    assert file_stem(make_config("data.loader=ffcv")) == "center-ffcv"
    assert file_stem(make_config("data.loader=torch")) == "center"
    assert file_stem(make_config(), precision="fp32") == "center"
    assert file_stem(make_config(), precision="bf16", normalization="12ab") == "center-fp32-normalization12ab"
    config = make_config("protocol=ten_crop", "protocol.region=square")
    assert file_stem(config, "ema", "best") == "ten_crop-square-best-ema"

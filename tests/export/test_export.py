"""An exported network: the same error in this framework, the same predictions in timm, a card that the Hub reads."""

import io
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torch import nn

from tencrop.cli.choices import CONF
from tencrop.config import Config, ExportConfig, Model, UserError, validate
from tencrop.data.store.manifest import open_split, read_manifest
from tencrop.evaluation.evaluate import evaluate_run, evaluate_targets
from tencrop.evaluation.predictions import load_scores
from tencrop.evaluation.results import load_result
from tencrop.evaluation.targets import evaluation_targets
from tencrop.export import formats, source
from tencrop.export.commands import model_overrides
from tencrop.export.export import export
from tencrop.export.preprocessing import crop_fraction, is_timms
from tencrop.export.source import export_source
from tencrop.models.factory import build_model
from tencrop.models.weights import PREPROCESSING_KEY, load_weights
from tencrop.records.run_folder import run_folder
from tencrop.training.checkpoints import AtomicCheckpointIO

STATISTICS = {"mean": [110.0, 115.5, 100.0], "std": [60.0, 59.0, 61.25]}
TIMMS = [
    "model=timm", "model.name=test_resnet", "model.bn_group=2", "normalization.mean=[110,115.5,100]",
    "+recipe.guesses=[optimizer.lr]",
]  # fmt: skip


def configured(*words: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(compose("train", list(words)), Config)


def trained(root: Path, runs: Path, *words: str, seed: int = 0, statistics: Mapping[str, object] = {}) -> Path:
    """A run folder with random raw and EMA weights, evaluated under two protocols; returns its checkpoint.

    statistics: what the checkpoint has beside STATISTICS.
    """
    always = ("data=imagefolder", f"data.root={root}", f"runs={runs}", "hardware=cpu", "tracker=none")
    words = (*always, "image_size=32", "short_side=36", "training.precision=fp32", *words)
    config = configured(*words)
    manifest = read_manifest(root)
    folder = run_folder(config, manifest, total_steps=7)
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for kind in ("model", "ema"):
        network = build_model(config.model, num_classes=3)
        nn.init.normal_(list(network.parameters())[-2], std=1)  # the classifier's weights; timm's start near 0
        state |= {f"{kind}.{name}": value for name, value in network.state_dict().items()}
    ids = {key: json.loads((folder / "manifest.json").read_text())[key] for key in ("run_id", "model", "total_steps")}
    metadata = {"seed": config.seed, "step": 7, "format": 2, **ids, **STATISTICS, **statistics}
    path = folder / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "tencrop": metadata}, path)
    for protocol in ("center", "ten_crop"):
        tested = configured(*words, f"protocol={protocol}")
        evaluate_run(tested, manifest=manifest, checkpoint=path, out=folder / "predictions")
    return path


@pytest.fixture(scope="module")
def checkpoint(prepared_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of timm's smallest network, with EMA weights."""
    return trained(prepared_photos, tmp_path_factory.mktemp("runs"), *TIMMS, "normalization.std=[60,59,61.25]")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exported(checkpoint: Path, **options: object) -> Path:
    values = {"format": "safetensors", "ema": None, "output": None, **options}
    wanted = export_source(ExportConfig(checkpoint=str(checkpoint), **values))  # type: ignore[arg-type]
    export(wanted)
    return wanted.out


def evaluated_by_its_card(folder: Path, root: Path, number: int) -> tuple[torch.Tensor, dict]:
    """The softmax and the result of a command of the card, run in this process."""
    commands = re.findall(r"^python evaluate\.py (.*)$", (folder / "README.md").read_text(), re.M)
    words = [
        word.replace("PREPARED", str(root)).replace("=model.", f"={folder}/model.")
        for word in shlex.split(commands[number])
    ]
    words = [*words, "hardware=cpu", "tracker=none"]
    weights = next(word for word in words if word.startswith("weights="))
    config = configured(*(f"+{word}" if word == weights else word for word in words))
    (found,) = evaluate_targets(evaluation_targets(config, words))
    return found.scores.softmax, found.result


def test_raw_weights_beside_an_average_are_exported_on_request(checkpoint: Path) -> None:
    folder = exported(checkpoint, ema=False)
    assert folder.name.endswith("-ema_false")
    raw, average = (load_weights(checkpoint, ema=ema).state for ema in (False, True))
    written = load_weights(folder / "model.safetensors").state
    assert all(torch.equal(written[key], raw[key]) for key in raw)
    assert not all(torch.equal(written[key], average[key]) for key in raw)
    assert "Not measured for these weights" in (folder / "README.md").read_text()  # only the average was evaluated


def test_a_flipped_bit_in_the_exported_weights_is_found(checkpoint: Path) -> None:
    file = exported(checkpoint, output="flipped") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: .*its weights are not those that were written"):
        load_weights(file)
    with safe_open(file, framework="pt") as written:  # as earlier versions exported it
        facts = json.loads(written.metadata()[PREPROCESSING_KEY])
    del facts["weights_sha256"]
    save_file(load_file(file), file, {PREPROCESSING_KEY: json.dumps(facts)})
    assert load_weights(file).preprocessing == facts


def test_the_file_gives_the_runs_error_exactly(checkpoint: Path, prepared_photos: Path) -> None:
    folder = exported(checkpoint)
    assert folder.name == f"test_resnet-imagefolder-{checkpoint.parents[1].name}"
    for number, protocol in enumerate(("center", "ten_crop")):
        softmax, result = evaluated_by_its_card(folder, prepared_photos, number)
        (run,) = (checkpoint.parents[1] / "predictions").glob(f"{protocol}*.result.json")
        of_run = load_result(run)
        assert result["protocol"] == protocol and of_run["weights"] == "ema"
        for key in ("top1_error", "top5_error", "weights_sha256", "source_fingerprint", "mean", "std", "size", "side"):
            assert result[key] == of_run[key], key
        assert torch.equal(softmax, load_scores(run.with_name(of_run["scores"])).softmax)
        assert result["preprocessing"] == f"the export of test_resnet-imagefolder/{checkpoint.parents[1].name}"


def test_timm_reads_the_folder_and_predicts_the_same(checkpoint: Path, prepared_photos: Path) -> None:
    folder = exported(checkpoint)
    network = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(pretrained_cfg=network.pretrained_cfg))
    split = open_split(str(prepared_photos), "val", data="imagefolder")
    images = [Image.open(io.BytesIO(split.read_original(number))) for number in range(split.num_samples)]
    with torch.inference_mode():
        logits = torch.cat([network(transform(image.convert("RGB"))[None]) for image in images])
    ours = load_scores(next((checkpoint.parents[1] / "predictions").glob("center*.safetensors"))).logits
    torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)
    assert ours.std(0).min() > 0.1, "the images make no difference"
    # safetensors' own function makes files that only their owner can read
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["china", "flower", "mirrored"]


def test_the_hub_reads_the_card(checkpoint: Path) -> None:
    card = ModelCard.load(exported(checkpoint) / "README.md")
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    (run,) = (checkpoint.parents[1] / "predictions").glob("ten_crop*.result.json")
    result = load_result(run)
    (ten,) = (one for one in card.data.eval_results if one.metric_name.startswith("top-1, ten_crop"))
    assert ten.metric_value == pytest.approx(100 * (1 - result["top1_error"]), abs=1e-4)
    low, high = result["top1_interval"]
    assert f"{100 * result['top1_error']:.2f} | {100 * low:.2f} – {100 * high:.2f}" in card.text
    assert result["source_fingerprint"] in card.text and "subtract 110, 115.5, 100" in card.text
    assert "exponential moving average" in card.text and "global_batch: 256" in card.text
    assert "does not state (guesses):\n\n- `optimizer.lr: 0.1`" in card.text


def test_one_of_our_networks_has_no_timm_config(prepared_photos: Path, tmp_path: Path) -> None:
    path = trained(
        prepared_photos,
        tmp_path / "runs",
        "model=lenet5_dense",
        "normalization.mean=[110,115.5,100]",
        "normalization.std=[60,59,61.25]",
    )
    # beside a result, macOS leaves this on volumes without extended attributes
    (path.parents[1] / "predictions" / "._center.result.json").write_bytes(b"\0\5\x16\7")
    folder = exported(path)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "model.safetensors"]
    assert ModelCard.load(folder / "README.md").data.library_name is None
    (run,) = (path.parents[1] / "predictions").glob("center*.result.json")
    softmax, _ = evaluated_by_its_card(folder, prepared_photos, 0)
    assert torch.equal(softmax, load_scores(run.with_name(load_result(run)["scores"])).softmax)


def test_torch_export_gives_the_networks_logits(checkpoint: Path) -> None:
    folder = exported(checkpoint, format="torch_export")
    assert folder.name.endswith("-torch_export")
    program = torch.export.load(folder / "model.pt2").module()
    network = timm.create_model(f"local-dir:{exported(checkpoint).absolute()}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program(images), network(images), rtol=1e-4, atol=1e-4)


def test_onnx_gives_the_networks_logits(checkpoint: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported(checkpoint, format="onnx") / "model.onnx")
    network = timm.create_model(f"local-dir:{exported(checkpoint).absolute()}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(logits, network(images).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_other_outputs_are_refused_and_nothing_is_left(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = formats._write_torch_export
    monkeypatch.setattr(formats, "_write_torch_export", lambda *given: lambda images: write(*given)(images) + 0.01)
    with pytest.raises(UserError, match=r"the exported test_resnet differs by 1\.0e-02 in its logits"):
        exported(checkpoint, format="torch_export")
    assert list(Path("exports").iterdir()) == []


def test_what_torch_cannot_export_is_refused_in_a_sentence(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent control flow\nwith a page of explanation")

    monkeypatch.setattr(torch.export, "export", failing)
    told = r"format=torch_export: torch cannot export test_resnet \(data-dependent control flow\)$"
    with pytest.raises(UserError, match=told):
        exported(checkpoint, format="torch_export")
    assert list(Path("exports").iterdir()) == []


def test_bad_commands_are_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(checkpoint, output="out")
    before = {path.name: os.stat(path).st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"^out: is there already; .* output=DIR"):
        exported(checkpoint, output="out")
    assert before == {path.name: os.stat(path).st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="is not in a run folder"):
        exported(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"is a folder; name a file"):
        exported(checkpoint.parent)
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^format=onnx: needs the package onnx; install it with: pip install 'tencrop"):
        exported(checkpoint, format="onnx")


def test_timms_crop_fraction_gives_our_side() -> None:
    pairs = [(size, side) for size in range(16, 400, 7) for side in range(size, 2 * size, 5)]
    assert any(math.floor(size / (size / side)) != side for size, side in pairs), "the plain ratio would do"
    for size, side in pairs:
        assert math.floor(size / crop_fraction(size, side)) == side
        assert crop_fraction(size, side) == pytest.approx(size / side, rel=1e-12)


def test_the_words_of_a_network() -> None:
    assert model_overrides(Model("vgg_d", {}, False, None)) == ["model=timm", "model.name=vgg_d"]
    words = model_overrides(Model("resnet18", {"zero_init_last": True, "act": "a b"}, True, 64))
    assert shlex.split(" ".join(words)) == [
        "model=timm",
        "model.name=resnet18",
        "+model.kwargs.zero_init_last=true",
        '+model.kwargs.act="a b"',
        "model.channels_last=true",
    ]


@pytest.mark.parametrize("change", [{"blur_pool": True}, {"bn_eps": 0.001}])
def test_a_network_that_timm_would_build_otherwise_is_not_timms(change: dict[str, Any]) -> None:
    """From a config.json beside the weights, without the blur or with its own epsilon; the printed command has both."""
    own, changed = Model("resnet18", {}, False, 2), Model("resnet18", {}, False, 2, **change)
    network = build_model(own, num_classes=10)
    assert is_timms(network, own) and not is_timms(network, changed)
    [(key, value)] = change.items()
    word = f"model.{key}={str(value).lower()}"
    assert model_overrides(changed) == ["model=timm", "model.name=resnet18", word]


MEAN_IMAGES = {
    "image": (["normalization.mean=image", "augmentation=random_crop", "protocol.region=square"], 256, 256),
    "image_center": (["normalization.mean=image_center", "protocol.region=whole"], 36, 32),
}


@pytest.mark.parametrize("use", MEAN_IMAGES)
def test_a_mean_image_is_exported_in_a_file_of_its_own(use: str, prepared_photos: Path, tmp_path: Path) -> None:
    """Of a timm network, which timm must not build from a config.json with the mean color alone."""
    words, short_side, side = MEAN_IMAGES[use]
    image = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(1)) * 255
    words = [*TIMMS, *words, "normalization.std=[60,59,61.25]", f"short_side={short_side}"]
    path = trained(prepared_photos, tmp_path / "runs", *words, statistics={"mean_image": image, "mean_image_use": use})
    folder = exported(path)
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "mean_image.safetensors",
        "model.safetensors",
    ]
    card = (folder / "README.md").read_text()
    assert "`mean_image` [height, width, RGB] of `mean_image.safetensors`" in card and "create_model" not in card
    for number, protocol in enumerate(("center", "ten_crop")):
        softmax, result = evaluated_by_its_card(folder, prepared_photos, number)
        (run,) = (path.parents[1] / "predictions").glob(f"{protocol}*.result.json")
        of_run = load_result(run)
        for key in ("top1_error", "weights_sha256", "mean", "std", "mean_image_sha256", "size", "side"):
            assert result[key] == of_run[key], key
        assert torch.equal(softmax, load_scores(run.with_name(of_run["scores"])).softmax)
    save_file({"mean_image": image + 1}, folder / "mean_image.safetensors")
    with pytest.raises(UserError, match=r"is not the mean image of model\.safetensors; copy it from the folder"):
        evaluated_by_its_card(folder, prepared_photos, 0)
    (folder / "mean_image.safetensors").unlink()
    with pytest.raises(UserError, match=r"no such file, but model\.safetensors needs its mean image; copy it from"):
        evaluated_by_its_card(folder, prepared_photos, 0)

"""A student learns from a teacher: the loss, what the teacher sees, what is stored, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pytorch_lightning import Trainer
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from tencrop.config import Model, UserError, derive_batches
from tencrop.data.preparation.prepare import prepare
from tencrop.data.store.manifest import read_manifest
from tencrop.models.factory import build_model
from tencrop.models.weights import PREPROCESSING_KEY, Weights
from tencrop.records.run_folder import finish, read_run_manifest, run_folder
from tencrop.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from tencrop.training.distillation import Teacher, _normalization, read_teacher, set_distilled_training
from tencrop.training.fit import build
from tencrop.training.losses import distillation_loss
from training import runs
from training.conftest import start
from typed import present, stand_in

SHARED = Path(__file__).parents[3] / "shared" / "data"
STUDENT = (
    "model.name=deit_tiny_distilled_patch16_224", "~model.kwargs.drop_rate", "+model.kwargs.embed_dim=24",
    "+model.kwargs.depth=2", "+model.kwargs.num_heads=2", "+model.kwargs.img_size=32", "+model.kwargs.patch_size=8",
    "+model.kwargs.drop_path_rate=0.2", "model.bn_group=null", "optimizer.layer_decay=0.6", "training.max_rms=0.01",
)  # fmt: skip
MIXED = ("augmentation.mixing.mixup_alpha=0.8", "augmentation.mixing.mix_group=2", "augmentation.erasing.prob=0.5")


def taught_by(checkpoint) -> tuple[str, ...]:
    """The overrides for the small student with `uninterrupted` as its teacher; that folder has no config.yaml."""
    return (*STUDENT, *MIXED, f"training.distill.teacher={checkpoint}", "training.distill.model=test_efficientnet")


def test_the_loss_of_hand_made_logits():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    of_teacher = -(np.log(shares[0, 1]) + np.log(shares[1, 2])) / 2
    for alpha in (0.0, 0.3, 1.0):
        loss = distillation_loss(torch.tensor(1.7), logits, torch.tensor([1, 2]), alpha=alpha)
        assert loss.item() == pytest.approx((1 - alpha) * 1.7 + alpha * of_teacher, rel=1e-6)


def batch_norm_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 7))


def test_a_teacher_of_other_mean_and_std_sees_the_same_pixels():
    network, pixels = batch_norm_network().train(), 255 * torch.rand(64, 3, 8, 8)
    one, other = ([120.0, 110.0, 100.0], [60.0, 50.0, 40.0]), ([10.0, 20.0, 30.0], [200.0, 300.0, 400.0])
    teacher = Teacher(network, mean=other[0], std=other[1], facts={}, bf16=False)
    mean, std, own_mean, own_std = map(torch.tensor, (*one, *other))
    normalized = [
        (pixels - center[:, None, None]) / spread[:, None, None]
        for center, spread in ((mean, std), (own_mean, own_std))
    ]
    seen: list[torch.Tensor] = []
    network[0].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    before = [value.clone() for value in network.state_dict().values()]
    labels = teacher.labels(normalized[0], mean=mean, std=std)
    assert torch.equal(labels, network(normalized[1]).argmax(1)) and len(labels.unique()) > 1
    assert torch.allclose(seen[0], normalized[1], atol=1e-5)
    # with its own mean and std, the inputs are passed on as they are; nothing learns, and nothing is drawn
    same = Teacher(network, mean=other[0], std=other[1], facts={}, bf16=False)
    assert torch.equal(same.labels(normalized[1], mean=own_mean, std=own_std), labels)
    assert seen[2] is normalized[1]
    assert all(torch.equal(*pair) for pair in zip(before, network.state_dict().values(), strict=True))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_step_learns_from_labels_and_teacher(uninterrupted, prepared_photos, monkeypatch):
    config = runs.recipe(prepared_photos, *taught_by(uninterrupted.last), "training.distill.alpha=0.3")
    data, classifier = build(config, batches=derive_batches(config), manifest=read_manifest(prepared_photos))
    strategy = SimpleNamespace(root_device=torch.device("cpu"), block_backward_sync=None)
    trainer = stand_in(Trainer, global_rank=0, world_size=1, global_step=0, current_epoch=0, strategy=strategy)
    data.trainer = classifier.trainer = trainer
    losses: list[torch.Tensor] = []
    monkeypatch.setattr(classifier, "manual_backward", losses.append)
    seen: list[torch.Tensor] = []
    teacher = present(classifier.teacher)
    teacher.network.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    heads: list[tuple[torch.Tensor, torch.Tensor]] = []
    classifier.model.register_forward_hook(lambda layer, inputs, output: heads.append(output))
    batch = next(iter(data.train_dataloader()))
    classifier.training_step(batch, 0)
    data.close()
    assert not any("teacher" in name for name in classifier.state_dict())
    inputs = classifier.training_inputs(batch)  # after erasing and mixing
    assert torch.equal(seen[0], inputs)
    ((first, second),) = heads
    weights = batch.params["mix_weights"].to(first.dtype)[:, None]
    assert (weights < 1).any()
    targets = torch.eye(3)[batch.labels] * weights + torch.eye(3)[batch.labels.flip(0)] * (1 - weights)
    targets = 0.9 * targets + 0.1 / 3
    of_labels = -(targets * first.log_softmax(1)).sum(1).mean()
    of_teacher = nn.functional.cross_entropy(second, teacher.network(seen[0]).argmax(1))
    # two micro-batches of the three of a step are still to come
    assert losses[0].item() == pytest.approx((0.7 * of_labels + 0.3 * of_teacher).item() / 3, rel=1e-5)


def test_resumes_like_an_uninterrupted_run_without_the_teacher_in_its_checkpoint(train, uninterrupted):
    """With layer_decay and max_rms, EMA, accumulation and mixing."""
    words = taught_by(uninterrupted.last)
    whole = train("whole", *words)
    assert whole.exit_code == 0
    assert train("run", *words, fault={"signal_number": signal.SIGTERM, "at_step": 4}).exit_code == 75
    run = train("run", *words)
    assert run.exit_code == 0 and run.rows() == whole.rows()
    assert all(run.result()[key] == whole.result()[key] for key in ("weights_sha256", "ema_sha256"))
    checkpoint = read_checkpoint(run.last)
    names = {name.partition(".")[2] for name in checkpoint["state_dict"] if name.startswith(("model.", "ema."))}
    assert {"head.weight", "head_dist.weight"} < names and not any("bn1" in name for name in names)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert groups[-1]["lr_scale"] == 1 and len({group["lr_scale"] for group in groups}) == 4
    assert all(group["lr"] == groups[-1]["lr"] * group["lr_scale"] for group in groups)
    kernels = checkpoint["state_dict"]["model.patch_embed.proj.weight"]
    assert kernels.square().mean((1, 2, 3)).sqrt().max().item() == pytest.approx(0.01, rel=1e-5)
    assert not torch.equal(
        checkpoint["state_dict"]["model.head.weight"], checkpoint["state_dict"]["model.head_dist.weight"]
    )


def test_two_devices_learn_as_one_does(train, uninterrupted):
    words = [word for word in taught_by(uninterrupted.last) if "drop_path" not in word]  # its masks depend on the rank
    words += ["augmentation.mixing.mix_group=3", "training.epochs=2"]
    layouts = {1: ["hardware.max_micro_batch=3"], 2: ["hardware=ddp_cpu2", "hardware.max_micro_batch=null"]}
    states = {}
    for num_ranks, layout in layouts.items():
        run = train(str(num_ranks), *words, *layout, num_ranks=num_ranks, float64=True)
        assert run.exit_codes == [0] * num_ranks
        states[num_ranks] = read_checkpoint(run.last)["state_dict"]
    for key, value in states[1].items():
        if value.is_floating_point():
            assert torch.allclose(value, states[2][key], rtol=1e-9, atol=1e-12), key


@pytest.fixture
def plain_file(tmp_path):
    """A file of weights that says nothing about normalization."""
    torch.manual_seed(0)
    network = build_model(Model("test_resnet", {}, channels_last=False, bn_group=2), num_classes=3)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_a_plain_file_is_normalized_as_timm_says(prepared_photos, plain_file):
    config = runs.recipe(
        prepared_photos, f"training.distill.teacher={plain_file}", "training.distill.model=test_resnet"
    )
    teacher = read_teacher(config, ["china", "flower", "mirrored"])
    assert teacher.mean.tolist() == pytest.approx([127.5] * 3) and teacher.std.tolist() == pytest.approx([127.5] * 3)
    assert not teacher.network.training and teacher.facts["weights"] == "raw"


def test_a_file_is_normalized_as_its_publisher_says_and_not_as_the_default():
    model = Model("resnet34", {}, channels_last=False, bn_group=None)
    with torch.device("meta"):
        network = build_model(model, num_classes=3)
    of_imagenet, half = [123.675, 116.28, 103.53], [127.5] * 3
    for file, expected in (("teacher.pth", of_imagenet), ("resnet34.ra4_e3600_r224_in1k.safetensors", half)):
        mean, _ = _normalization(Path(file), Weights({}, "raw", {}, {}), model, network)
        assert mean == pytest.approx(expected)


def test_an_exported_teacher_with_a_mean_image_is_refused(prepared_photos, plain_file):
    """The file's mean per channel is only the average of the image that the teacher was trained with."""
    facts = {
        "source": "export.py",
        "mean": [120.0] * 3,
        "std": [1.0] * 3,
        "filter": "bicubic",
        "size": 224,
        "side": 256,
    }
    facts |= {"mean_image": {"use": "image_center", "sha256": "0" * 64}}
    save_file(load_file(plain_file), plain_file, metadata={PREPROCESSING_KEY: json.dumps(facts)})
    config = runs.recipe(
        prepared_photos, f"training.distill.teacher={plain_file}", "training.distill.model=test_resnet"
    )
    with pytest.raises(UserError, match="was trained with a mean image, a mean at every pixel; give a teacher with"):
        read_teacher(config, ["china", "flower", "mirrored"])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the images and weights of {SHARED}")
def test_a_published_file_teaches(data_config, tmp_path):
    """EfficientNet-Lite0's weights under timm's names: a student takes two steps, and the labels are timm's."""
    names = [f"{number:03}" for number in range(1000)]
    for split, (number, name) in itertools.product(("train", "val"), enumerate(names)):
        (tmp_path / "made_up" / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number % 256, number // 4, 99)).save(tmp_path / "made_up" / split / name / "0.png")
    root = prepare(data_config(tmp_path / "made_up", tmp_path / "prepared"), workers=2, progress=False)
    file, model = SHARED / "weights" / "efficientnet_lite0.safetensors", "tf_efficientnet_lite0"
    words = (*STUDENT, *MIXED, f"training.distill.teacher={file}", f"training.distill.model={model}")
    run = start(root, tmp_path / "run", *words, "training.max_steps=2")
    assert run.exit_code == 0 and run.result()["step"] == 2
    teacher = read_teacher(runs.recipe(root, *words), names)
    lines = (SHARED / "imagenet_val_227" / "labels.tsv").read_text().splitlines()[:20]
    images = [Image.open(SHARED / "imagenet_val_227" / "images" / line.split("\t")[0]) for line in lines]
    pixels = torch.stack([pil_to_tensor(image.convert("RGB")) for image in images])[:, :, 1:-2, 1:-2].float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    labels = teacher.labels((pixels - mean[:, None, None]) / std[:, None, None], mean=mean, std=std)
    network = timm.create_model(model).eval()
    network.load_state_dict(load_file(file))
    with torch.inference_mode():
        assert torch.equal(labels, network((pixels - 127.5) / 127.5).argmax(1))
    assert sum(label == int(line.split("\t")[1]) for label, line in zip(labels.tolist(), lines, strict=True)) >= 14


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        ("test_vit", 3, "test_vit: missing"),
        ("test_resnet", 4, r"test_resnet: fc\.weight is \[3, .* give a teacher of the 4 classes of "),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(prepared_photos, plain_file, model, classes, message):
    start = rf"^training\.distill\.teacher={re.escape(str(plain_file))}: its weights do not fit {message}"
    words = (f"training.distill.teacher={plain_file}", f"training.distill.model={model}", "image_size=160")
    config = runs.recipe(prepared_photos, *words, "short_side=160")
    with pytest.raises(UserError, match=start) as refused:
        read_teacher(config, ["china", "flower", "mirrored", "other"][:classes])
    assert "name the network that they were trained with in training.distill.model" in str(refused.value)


def test_a_run_is_asked_for_its_network_classes_and_normalization(prepared_photos, uninterrupted, tmp_path):
    config = runs.recipe(prepared_photos, "normalization.mean=[100,110,120]")
    run_dir = run_folder(dataclasses.replace(config, runs=str(tmp_path)), read_manifest(prepared_photos))
    content = read_checkpoint(uninterrupted.last)
    content["tencrop"] |= {"mean": [100.0, 110.0, 120.0], "run_id": read_run_manifest(run_dir)["run_id"]}
    content["tencrop"]["model"] = config.model.name
    AtomicCheckpointIO().save_checkpoint(content, run_dir / "checkpoints" / "last.ckpt")
    finish(run_dir, status="complete", **{key: content["tencrop"][key] for key in ("weights_sha256", "ema_sha256")})
    student = runs.recipe(prepared_photos, f"training.distill.teacher={run_dir}")
    teacher = read_teacher(student, ["china", "flower", "mirrored"])
    assert teacher.mean.tolist() == [100, 110, 120] and teacher.facts["weights"] == "ema"
    assert teacher.facts["weights_sha256"] == content["tencrop"]["ema_sha256"]
    assert any(layer.p == 0.2 for layer in teacher.network.modules() if isinstance(layer, nn.Dropout)) or (
        getattr(teacher.network, "drop_rate", None) == 0.2
    )
    with pytest.raises(
        UserError, match=r"last\.ckpt: was trained on other classes than those of .*; give a teacher of"
    ):
        read_teacher(student, ["china", "mirrored", "flower"])


def test_a_student_without_a_second_head_is_refused():
    with pytest.raises(UserError, match=r"training\.distill\.teacher: x has no distillation token; choose a network"):
        set_distilled_training(nn.Linear(2, 2), name="x")

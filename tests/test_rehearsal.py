"""Neither a training step nor evaluation makes the host wait for the GPU, but to read its results."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from rehearsal import Waits, rehearsal
from tencrop.cli.choices import options_of
from tencrop.config import Config, derive_batches
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation import inference
from tencrop.evaluation.inference import ScoringTask, open_val_split, score_part
from tencrop.models.convolutional import fully_convolutional
from tencrop.models.factory import build_model
from tencrop.training.classifier import Classifier
from tencrop.training.data_module import DataModule
from typed import stand_in

CUDA = torch.device("cuda", 0)
NETWORK = ("model=timm", "model.name=test_resnet", "model.bn_group=2")
OPTIONS = ("data=imagefolder", "image_size=32", "short_side=32", "training.global_batch=8", "hardware=cpu",
           "hardware.workers=1", "hardware.max_micro_batch=4")  # fmt: skip


@pytest.fixture
def make_config(composed, prepared_photos) -> Callable[..., Config]:
    """make_config(*overrides): a small network on the photographs; a step is two micro-batches of two groups each."""

    def make(*overrides: str) -> Config:
        network = () if any(override.startswith("model=") for override in overrides) else NETWORK
        return composed(*OPTIONS, *network, f"data.root={prepared_photos}", *overrides)

    return make


def rehearse_step(config: Config, kind: type[Classifier] = Classifier) -> Classifier:
    """A training step and one of validation on real batches, from their transfer on; backward passes are left out, as
    fakes cannot take them: gradients are zeros."""
    batches, manifest = derive_batches(config), read_manifest(config.data.root)
    data = DataModule(config, batches)
    trainer = stand_in(
        Trainer,
        global_rank=0, world_size=1, global_step=0, current_epoch=0, strategy=SimpleNamespace(root_device=CUDA),
        datamodule=data, should_stop=False,
    )  # fmt: skip
    on_host = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = stand_in(Trainer, **(vars(trainer) | {"strategy": on_host}))
    training, validation = (
        [batch._replace(images=batch.images.clone()) for batch, _ in zip(loader(), range(2), strict=False)]
        for loader in (data.train_dataloader, data.val_dataloader)
    )
    data.close()
    model = build_model(config.model, num_classes=len(manifest["classes"]), image_size=config.image_size)
    classifier = kind(
        config, model, statistics=manifest["statistics"], batches=batches, steps_per_epoch=data.steps_per_epoch
    )
    with rehearsal() as watch, pytest.MonkeyPatch.context() as patch:
        classifier.to(CUDA)
        optimizer = classifier.configure_optimizers()
        classifier.trainer = trainer
        patch.setattr(classifier, "optimizers", lambda: optimizer)
        patch.setattr(classifier, "manual_backward", lambda loss: give_gradients(classifier.model))
        watch.is_on = True
        classifier.train()
        for number, batch in enumerate(training):
            moved = data.transfer_batch_to_device(batch, CUDA, 0)
            classifier.on_train_batch_start(moved, number)
            classifier.training_step(moved, number)
        classifier.eval()
        for number, batch in enumerate(validation):
            classifier.validation_step(data.transfer_batch_to_device(batch, CUDA, 0), number)
    return classifier


def give_gradients(model) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("name", options_of("augmentation"))
def test_no_augmentation_waits(make_config, name):
    mixed = ["augmentation.mixing.mix_group=2"] if name == "deit" else []
    classifier = rehearse_step(make_config(f"augmentation={name}", *mixed))
    assert classifier.train_counts.device == classifier.val_counts.device == CUDA


RECIPES = {
    "torchvision's operations and colors, smoothed labels": [
        "augmentation.jitter.source=torchvision", "augmentation.jitter.brightness=0.4", "augmentation.jitter.hue=0.1",
        "augmentation.randaugment.num_ops=2", "augmentation.erasing.prob=0.5", "augmentation.erasing.fill=mean",
        "training.label_smoothing=0.1",
    ],
    "moving average, clipped gradients": [
        "training.ema_decay=0.9", "training.clip_grad_norm=1.0", "optimizer=sgd_alexnet", "training.precision=fp32",
    ],
    "auxiliary heads, mixed": [
        "model=googlenet_2014", "+model.kwargs.width=0.25", "image_size=224", "short_side=224",
        "augmentation.mixing.mixup_alpha=0.8", "augmentation.mixing.mix_group=2",
    ],
    "drop-path for a whole batch": [
        "model=fractalnet34", "+model.kwargs={width: 0.05, num_columns: 2}", "model.bn_group=2",
        "image_size=64", "short_side=64",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_waits(make_config, name):
    classifier = rehearse_step(make_config(*RECIPES[name]))
    assert classifier.auxiliary_weight > 0 or "auxiliary" not in name


FAULTS: dict[str, Callable[[Tensor], object]] = {
    ".item()": lambda loss: loss.item(),
    "a comparison": lambda loss: loss > 0 or None,
    ".tolist()": lambda loss: loss.expand(2).tolist(),
    ".cpu()": lambda loss: loss.cpu(),
    "an asynchronous .cpu()": lambda loss: loss.to("cpu", non_blocking=True),
    "new_tensor": lambda loss: loss.new_tensor([1.0, 0.0]),
    "a constant that is moved": lambda loss: torch.tensor(0.5).to(loss.device),
    "a constant made there": lambda loss: torch.tensor([0.5, 1.5], device=loss.device),
    "a constant within": lambda loss: loss.add_(torch.tensor(0.5)),
    "a CPU vector": lambda loss: loss * torch.ones(3),
    "an index on the host": lambda loss: loss.expand(5)[torch.arange(2)],
    "a list as an index": lambda loss: loss.expand(5)[[0, 2]],
    "a mask": lambda loss: loss.expand(5)[loss.expand(5) > 0],
    "nonzero": lambda loss: loss.expand(5).nonzero(),
    "copy_": lambda loss: loss.copy_(torch.ones(())),
}


def test_each_planted_wait_is_caught(make_config):
    caught = set()

    class Planted(Classifier):
        def predict(self, network: Callable[[Tensor], Any], inputs: Tensor) -> list[Tensor]:
            heads = super().predict(network, inputs)
            for name, fault in FAULTS.items():
                try:
                    fault(heads[0].detach().mean())
                except Waits:
                    caught.add(name)
            return heads

    rehearse_step(make_config("augmentation=none"), Planted)
    assert caught == set(FAULTS)


@pytest.mark.parametrize("name", options_of("protocol"))
def test_no_protocol_waits(make_config, name, tmp_path, monkeypatch):
    """From a batch of the loader to its scores, at several sides where the protocol has them."""
    sides = "[40,36]" if name in ("dense", "crops_144") else "40"
    options = NETWORK if name == "dense" else ("model=lenet5_dense",)
    config = make_config(*options, f"protocol={name}", f"protocol.side={sides}", "hardware.max_micro_batch=12")
    config.save_views = True
    network, load = build_model(config.model, num_classes=3), inference._loader
    dense = fully_convolutional(network, image_size=32, name="dense") if name == "dense" else None  # reads numbers
    monkeypatch.setattr(inference, "fully_convolutional", lambda *_, **__: dense)
    with rehearsal() as watch:

        def watched(batches, num_images, **_):
            for batch in batches:
                watch.is_on = True
                yield batch
                watch.is_on = False

        monkeypatch.setattr(inference, "_with_progress", watched)
        monkeypatch.setattr(inference, "_device", lambda hardware, local_rank: CUDA)
        host = torch.device("cpu")
        monkeypatch.setattr(inference, "_loader", lambda one, two, three, _, five: load(one, two, three, host, five))
        task = ScoringTask(config, tmp_path, "raw", 3, [120.0] * 3, [60.0] * 3, {})
        scores = score_part(task, network, open_val_split(config), rank=0, num_ranks=1)
    assert scores.softmax.shape == (12, 3) and scores.softmax.device == CUDA
    assert scores.view_logits is not None

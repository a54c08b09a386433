"""Distillation (training.distill): a trained network, the teacher, labels the images that the student is trained on.

`build` in fit.py reads the teacher, and the classifier asks it for labels in each training step. The teacher is no part
of the checkpoints; the run's manifest has the digest of its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import Config, Model, UserError, run_path
from tencrop.config.initialization import run_of_teacher, teacher_file
from tencrop.models.checkpoint_files import run_manifest, weights_sha256
from tencrop.models.factory import build_model, check_image_size
from tencrop.models.published_files import timm_entry
from tencrop.models.weights import Weights, apply_weights, load_weights

OTHER_SIZE = "choose the image_size that the teacher was trained with, or another teacher"


class Teacher:
    """A trained network in eval mode, without gradients. Not a Module, so that no state dict and no DDP contains it."""

    def __init__(self, network: nn.Module, *, mean: list[float], std: list[float], facts: dict[str, str], bf16: bool):
        """mean, std: those of its inputs, on [0, 255]; facts: path, raw or ema, and digest, for the run's manifest.

        bf16: compute in bfloat16 except for the last layer. DeiT's teacher computes in the student's precision.
        """
        # eval: running statistics and no dropout, so that the labels do not depend on the rest of the batch.
        self.network = network.eval().requires_grad_(False)
        self.mean, self.std, self.facts = torch.tensor(mean), torch.tensor(std), facts
        self.bf16 = bf16
        self.is_mapped: bool | None = None  # whether inputs are mapped to the teacher's own mean and std

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)

    @torch.no_grad()
    def labels(self, inputs: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
        """The class with the highest score, int64 [B], for inputs [B, 3, H, W] that were normalized by mean and std,
        which must be the same in every call.

        If the teacher was trained with others, the inputs are mapped to its own. The map is affine, so the teacher sees
        the same mixtures of the same pixels; the noise of random erasing is scaled with them.
        """
        if self.is_mapped is None:  # once for all steps, because comparing tensors waits for the device
            self.is_mapped = not (torch.equal(mean, self.mean) and torch.equal(std, self.std))
        if self.is_mapped:
            scale, shift = std / self.std, (mean - self.mean) / self.std
            inputs = torch.addcmul(shift[:, None, None], inputs, scale[:, None, None])
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(inputs).argmax(dim=1)


def read_teacher(config: Config, classes: list[str]) -> Teacher:
    """Read training.distill.teacher; a checkpoint with EMA weights gives these, as in evaluation.

    classes: those of the training data. Draws from torch's generator. Raises UserError for a teacher that is missing or
    broken, was trained on other classes, does not take images of the student's size, or was normalized in another way
    than by one mean and standard deviation per channel.
    """
    path = teacher_file(config.training.distill, run_path(config))
    key, remedy = f"training.distill.teacher={path}", "give a teacher whose weights fit the network of its run folder"
    run_dir = run_of_teacher(path)
    if run_dir is not None:
        model = config_of_run(run_dir, [], conf=CONF).model
        known = run_manifest(run_dir).get("data", {}).get("classes", classes)
    else:
        assert config.training.distill.model is not None  # teacher_file has checked it
        remedy = (
            "name the network that they were trained with in training.distill.model, or give a teacher of the"
            f" {len(classes)} classes of {config.data.root}"
        )
        model, known = Model(config.training.distill.model, {}, channels_last=False, bn_group=None), classes
    # Names in order and not their number: the same classes in another order would teach wrong labels silently.
    if known != classes:
        raise UserError(
            f"{key}: was trained on other classes than those of {config.data.root}; give a teacher of the same classes"
        )
    weights = load_weights(path)
    network = build_model(model, num_classes=len(classes))
    apply_weights(network, weights.state, source=key, name=model.name, remedy=remedy)
    check_image_size(network, model.name, config.image_size, key=f"{key}, image_size", remedy=OTHER_SIZE)
    mean, std = _normalization(path, weights, model, network)
    facts = {"checkpoint": str(path), "weights": weights.kind, "weights_sha256": weights_sha256(weights.state)}
    return Teacher(network, mean=mean, std=std, facts=facts, bf16=config.training.precision == "bf16")


def set_distilled_training(network: nn.Module, *, name: str) -> None:
    """Let the student return the logits of both heads in train mode; in eval mode it returns their mean, as before.

    Raises UserError if it has no second head.
    """
    switch = getattr(network, "set_distilled_training", None)
    if switch is None:
        raise UserError(
            f"training.distill.teacher: {name} has no distillation token; choose a network that has one, such as"
            " model=deit_tiny_distilled_patch16_224, or set training.distill.teacher=null"
        )
    switch(True)


def _normalization(path: Path, weights: Weights, model: Model, network: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the teacher's inputs: those of its checkpoint or file, or else timm's."""
    stored = weights.metadata or weights.preprocessing
    if "mean_image" in stored:
        raise UserError(
            f"training.distill.teacher={path}: was trained with a mean image, a mean at every pixel; give"
            " a teacher with one mean per channel"
        )
    if stored:
        return stored["mean"], stored["std"]
    if (entry := timm_entry(model, network, path)) is None:
        raise UserError(
            f"training.distill.teacher={path}: does not say how images are normalized; give a run folder, its"
            " checkpoint, or a file that export.py wrote"
        )
    cfg, _ = entry
    return [255 * value for value in cfg["mean"]], [255 * value for value in cfg["std"]]

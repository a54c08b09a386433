"""Turns an out-of-memory error in the first step on a GPU into a message that says which micro-batch fits.

`fit` and the probe of plan=true call this. Accumulation over smaller micro-batches changes speed, not what is learned.
"""

from __future__ import annotations

import dataclasses
import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer

from tencrop.config import Batches, Config, UserError, derive_batches
from tencrop.data.augmentation.color import normalize
from tencrop.progress import format_bytes
from tencrop.training.batchnorm import GhostBatchNorm
from tencrop.training.classifier import Classifier

USABLE = 0.9  # fraction of the free memory: the trial augments no images, and memory fragments in a long run


@contextmanager
def explaining_out_of_memory(
    config: Config, classifier: Classifier, trainer: Trainer, *, first_step: int = 0
) -> Iterator[None]:
    """Around trainer.fit: turn torch.OutOfMemoryError before the end of step `first_step` into a UserError.

    To find a micro-batch that fits, trial steps run on the same device, which changes the classifier's weights. A later
    error is raised unchanged: the micro-batch did fit, so something else has taken the memory, or crops have grown
    (augmentation.progressive). In that case the resumed run fails in its first step, and gets the message.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if trainer.global_step > first_step:
            raise
        traceback.clear_frames(error.__traceback__)  # the local variables of its frames hold the activations
        raise UserError(_message(config, classifier, trainer.strategy.root_device)) from None


def _message(config: Config, classifier: Classifier, device: torch.device) -> str:
    limit, num_images = config.hardware.max_micro_batch, classifier.batches.micro_batch
    problem = (
        f"hardware.max_micro_batch={'null' if limit is None else limit}: the first step ran out of memory, since a"
        f" micro-batch of {num_images} images needs more than the {format_bytes(_free_memory(device))} that are free on"
        f" {device}"
    )
    smallest = num_images
    try:
        for layout in _smaller_layouts(config, classifier.batches):
            smallest = layout.micro_batch
            if (needed := _needed_memory(classifier, layout, device)) is not None:
                return (
                    f"{problem}; set hardware.max_micro_batch={smallest}, which needed {format_bytes(needed)} in a"
                    f" trial; accumulate_grad_batches becomes {layout.accumulate_grad_batches}, and what is learned"
                    " stays"
                )
    except UserError as error:  # no smaller layout keeps the recipe's groups together
        return f"{problem}; it cannot be split: {error}"
    return (
        f"{problem}; not even a micro-batch of {smallest} fits: choose a GPU with more memory, more devices, or a"
        " smaller model or image_size"
    )


def _smaller_layouts(config: Config, batches: Batches) -> Iterator[Batches]:
    """The layouts with smaller micro-batches that the recipe allows, largest first.

    Raises UserError after the last one if a smaller micro-batch would split a group of the recipe.
    """
    # derive_batches takes the largest size below the limit that keeps the recipe's groups together.
    while batches.micro_batch > 1:
        hardware = dataclasses.replace(config.hardware, max_micro_batch=batches.micro_batch - 1)
        batches = derive_batches(dataclasses.replace(config, hardware=hardware))
        yield batches


def _needed_memory(classifier: Classifier, layout: Batches, device: torch.device) -> int | None:
    """Peak memory in bytes of training steps with this layout; None if it exceeds USABLE of the free memory."""
    _free_unused()
    try:
        free = _free_memory(device)
        needed = _peak_memory(classifier.to(device), layout, device)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        return None
    finally:
        # Gradients and weights of the failed trial would take the memory that the next one is to find.
        classifier.zero_grad(set_to_none=True)
        classifier.cpu()
    return needed if needed <= USABLE * free else None


def _peak_memory(classifier: Classifier, layout: Batches, device: torch.device) -> int:
    """Peak memory in bytes of two optimizer steps; 0 on a CPU. The optimizer allocates its state in the first one."""
    size, optimizer = classifier.config.augmentation.size, classifier.configure_optimizers()
    weights = [weight for weight in classifier.model.parameters() if weight.requires_grad]
    # The content does not matter: kernels take as much memory for black images.
    images = torch.zeros(layout.micro_batch, size, size, 3, dtype=torch.uint8, device=device)
    labels = torch.zeros(layout.micro_batch, dtype=torch.int64, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        _reset_groups(classifier, layout)
        for _ in range(min(2, layout.accumulate_grad_batches)):  # the second one adds to stored gradients
            inputs = normalize(
                images, classifier.mean, classifier.std, channels_last=classifier.config.model.channels_last
            )
            heads = classifier.predict(classifier.model, inputs)
            loss = torch.stack([F.cross_entropy(logits, labels) for logits in heads]).sum()
            # Not backward(), which would run DDP's hooks on the weights, and these wait for the other ranks.
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient if weight.grad is None or gradient is None else weight.grad + gradient
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def _reset_groups(classifier: Classifier, layout: Batches) -> None:
    """Prepare BatchNorm's groups for a micro-batch of this layout; some layers may have run in the failed step."""
    for layer in classifier.model.modules():
        if isinstance(layer, GhostBatchNorm):
            layer.prepare(layout.micro_batch // layout.bn_groups, layout.bn_groups)


def _free_unused() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_memory(device: torch.device) -> int:
    """Bytes that this process can use on the device, including those that torch has reserved; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)

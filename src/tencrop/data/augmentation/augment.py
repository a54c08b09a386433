"""From a batch of the loader to the network's inputs: all of a recipe's augmentation that is done on the device.

Called by the classifier's training step. Pure functions of pixels and of what the plan drew; nothing is drawn here,
and nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tencrop.config import Augmentation
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import ColorNoise, normalize, pca_shift
from tencrop.data.augmentation.erasing import erase, is_erased
from tencrop.data.augmentation.jitter import is_jittered, jittered
from tencrop.data.augmentation.mixing import is_mixed, mix, partner_rows
from tencrop.data.augmentation.operations import apply_operations
from tencrop.data.augmentation.randaugment import is_randaugmented


def training_inputs(
    batch: Batch,
    augmentation: Augmentation,
    *,
    mean: Tensor,
    std: Tensor,
    noise: ColorNoise,
    erasing_noise: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Inputs [B, 3, H, W] in the dtype of `mean`: RandAugment's operations, color jitter, PCA noise, normalization,
    erasing and mixing, in this order.

    Which image befalls what is read on the host, from the batch's arrays; the tensors are on one device.
    mean, std: [3] on [0, 255]; what a moved image does not cover is `mean` under timm's RandAugment, black under
    torchvision's. erasing_noise: the run's `noise_table` where erasing.fill is normal.
    """
    images, randaugment = batch.images, augmentation.randaugment
    if is_randaugmented(randaugment):
        fill = mean.round() if randaugment.source == "timm" else torch.zeros_like(mean)
        operations, values = batch.operations, batch.operation_values
        images = apply_operations(images, operations, values, filter=randaugment.filter, fill=fill)
    if is_jittered(augmentation.jitter):
        images = jittered(images, batch.jitter, batch.jitter_orders, augmentation.jitter, dtype=mean.dtype)
    shift = pca_shift(batch.pca_alphas, noise.axes)
    inputs = normalize(images, mean, std, shift=shift, scale=noise.scale, channels_last=channels_last)
    if is_erased(augmentation.erasing):
        inputs = erase(inputs, batch.erased_boxes, batch.noise_offsets, noise=erasing_noise)
    if is_mixed(augmentation.mixing):
        inputs = mix(inputs, batch.partners, batch.mix_weights, batch.mix_boxes)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return inputs.contiguous(memory_format=layout)


def partner_labels(batch: Batch) -> Tensor:
    """The labels int64 [B] of the partners with which a batch is mixed (the samples' own where nothing is)."""
    return batch.labels[partner_rows(batch.partners)]

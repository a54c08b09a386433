"""Augmentation on the device: turns a loader's batch into the network's inputs.

These are pure functions of the pixels and the plan. Nothing is drawn at random here, and nothing synchronizes with the
device: which image gets which operation is known on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tencrop.config import Augmentation
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import ColorNoise, normalize, pca_shift
from tencrop.data.augmentation.erasing import erase, is_erased
from tencrop.data.augmentation.jitter import apply_jitter, is_jittered
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
    """Inputs [B, 3, H, W] in the dtype of `mean`: RandAugment, color jitter, PCA noise, normalization, erasing and
    mixing, in this order.

    All tensors must be on one device.
    mean, std: [3] on [0, 255]. erasing_noise: the run's `noise_table` if erasing.fill is normal.
    """
    images, randaugment = batch.images, augmentation.randaugment
    if is_randaugmented(randaugment):
        # Pixels that a rotation, shear or translation leaves uncovered: timm fills in the mean, torchvision black.
        fill = mean.round() if randaugment.source == "timm" else torch.zeros_like(mean)
        operations, values = batch.operations, batch.operation_values
        images = apply_operations(images, operations, values, filter=randaugment.filter, fill=fill)
    if is_jittered(augmentation.jitter):
        images = apply_jitter(images, batch.jitter, batch.jitter_orders, augmentation.jitter, dtype=mean.dtype)
    shift = pca_shift(batch.pca_alphas, noise.axes)
    # PCA noise is a constant per image and channel, so it is folded into the normalization and costs no extra pass.
    inputs = normalize(images, mean, std, shift=shift, scale=noise.scale, channels_last=channels_last)
    if is_erased(augmentation.erasing):
        inputs = erase(inputs, batch.erased_boxes, batch.noise_offsets, noise=erasing_noise)
    if is_mixed(augmentation.mixing):
        inputs = mix(inputs, batch.partners, batch.mix_weights, batch.mix_boxes)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return inputs.contiguous(memory_format=layout)


def partner_labels(batch: Batch) -> Tensor:
    """Labels int64 [B] of the samples that are mixed in (a sample's own label if it is not mixed)."""
    return batch.labels[partner_rows(batch.partners)]

"""Progressive resizing: the size of training crops as a function of the epoch.

plan.py asks for the size of each micro-batch, so every loader and every transform sees the size of the batch's own
epoch; training/fit.py checks before the run that the network takes all sizes.
"""

from __future__ import annotations

from dataclasses import replace

from tencrop.config import Augmentation


def at_epoch(augmentation: Augmentation, epoch: int) -> Augmentation:
    """The augmentation of one epoch (counted from 0): with that epoch's crop size as `size`."""
    return replace(augmentation, size=size_at(augmentation, epoch))


def size_at(augmentation: Augmentation, epoch: int) -> int:
    """Height and width in pixels of the training crops of an epoch, counted from 0.

    As in ffcv-imagenet (train_imagenet.py, get_resolution): start_size up to and including epoch start_ramp, the full
    size from epoch end_ramp, and between them the nearest multiple of `multiple` pixels to the line that joins the two.
    """
    ramp, size = augmentation.progressive, augmentation.size
    if ramp.start_size is None:
        return size
    assert ramp.start_ramp is not None and ramp.end_ramp is not None
    if epoch <= ramp.start_ramp:
        return ramp.start_size
    if epoch >= ramp.end_ramp:
        return size
    # In integers up to one division, so that halves are exact. round() takes them to the even number, as np.round in
    # ffcv-imagenet: 176 = 5.5 x 32 becomes 192.
    weighted = ramp.start_size * (ramp.end_ramp - epoch) + size * (epoch - ramp.start_ramp)
    return round(weighted / ((ramp.end_ramp - ramp.start_ramp) * ramp.multiple)) * ramp.multiple


def training_sizes(augmentation: Augmentation) -> list[int]:
    """All sizes of training crops in a run, smallest first."""
    ramp = augmentation.progressive
    if ramp.start_size is None:
        return [augmentation.size]
    assert ramp.start_ramp is not None and ramp.end_ramp is not None
    return sorted({size_at(augmentation, epoch) for epoch in range(ramp.start_ramp, ramp.end_ramp + 1)})

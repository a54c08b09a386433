"""Check, before any image is scored, that a network and the images of the evaluation split fit the protocol."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import nn

from tencrop.config import Config, UserError
from tencrop.config.launcher import is_first_process
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.sampling.rng import Index
from tencrop.data.sampling.sampler import MAX_PADDED_BYTES, check_rescaled
from tencrop.data.store.manifest import Split
from tencrop.evaluation.inference import micro_batch_of, open_val_split
from tencrop.evaluation.subsets import evaluated_index
from tencrop.models.convolutional import fully_convolutional, largest_layer_bytes
from tencrop.models.factory import check_image_size

REPORT_ABOVE_BYTES = 4_000_000_000  # activations of one layer above this size are reported


def check_scorable(network: nn.Module, config: Config) -> None:
    """Raises UserError if the network (on the CPU) or an image of the split does not fit the protocol.

    Prints how much memory the largest image takes, if that is a lot. Runs forward passes of one image. Afterwards every
    layer is in the mode (train or eval) that it was in before.
    """
    with _layer_modes_restored(network):
        _check_scorable(network, config)


@contextmanager
def _layer_modes_restored(network: nn.Module) -> Iterator[None]:
    # Layer by layer: network.train() would also switch layers that were deliberately in eval mode.
    modes = [(layer, layer.training) for layer in network.modules()]
    try:
        yield
    finally:
        for layer, is_training in modes:
            layer.training = is_training


def _check_scorable(network: nn.Module, config: Config) -> None:
    protocol, name = config.protocol, config.model.name
    split = open_val_split(config)
    index = evaluated_index(config, split)
    # Before any image is scored: an hour into a run, one tall image would otherwise end it.
    # From the table of sizes: all 50,000 images in 7 ms, without reading one.
    _refuse_small_images(config, split, index)
    for side in protocol.sides:
        sizes = evaluation_plan(index, split.stored_sizes, protocol=replace(protocol, side=side)).sizes
        key = f"protocol.side={'null' if side is None else side}"
        notice = check_rescaled(sizes, lambda number: split.names(int(index[number])), key=key)
        if notice is not None and is_first_process():
            print(notice, file=sys.stderr)
    check_image_size(network, name, protocol.size, key="protocol.size")
    if protocol.name == "dense":
        _report_dense_memory(fully_convolutional(network, image_size=protocol.size, name=name), config, split, index)


def _report_dense_memory(network: nn.Module, config: Config, split: Split, index: Index) -> None:
    """Print how much memory dense evaluation takes in its largest layer, if it may be more than a GPU has.

    Whole images of any size go through the network, so feature maps may be many times larger than in training.
    """
    largest = replace(config.protocol, side=max(config.protocol.sides, key=lambda side: side or 0))
    sizes = evaluation_plan(index, split.stored_sizes, protocol=largest).sizes
    height, width = sizes[sizes.astype(np.int64).prod(axis=1).argmax()].tolist()
    # The loader also limits a batch to MAX_PADDED_BYTES of pixels, so few of the largest images are ever together.
    one, num_at_once = largest_layer_bytes(network, height, width), micro_batch_of(config)
    num_bytes = one * max(1, min(num_at_once, MAX_PADDED_BYTES // (3 * height * width)))
    if num_bytes > REPORT_ABOVE_BYTES and is_first_process():
        print(
            f"protocol=dense: images of up to {width} x {height} pixels take up to {num_bytes / 1e9:.1f} GB in one"
            f" layer of {config.model.name}, {num_at_once} at once (hardware.max_micro_batch)",
            file=sys.stderr,
        )


def _refuse_small_images(config: Config, split: Split, index: Index) -> None:
    if config.protocol.side is not None:
        return  # check_protocol refuses a side smaller than the crop
    plan = evaluation_plan(index, split.stored_sizes, protocol=config.protocol)
    sides = plan.sizes.min(1)
    smallest = int(sides.argmin())
    if sides[smallest] < config.protocol.size:
        raise UserError(
            f"protocol.side=null: {split.names(int(index[smallest]))} has a shorter side of {sides[smallest]}"
            f" pixels, less than the crop's {config.protocol.size}; set protocol.side={config.protocol.size} or more"
        )

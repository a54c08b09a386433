"""A trained network with its data, as the figures need it: weights, initial weights, class names, image crops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tencrop.config import Config, UserError, num_workers
from tencrop.data.augmentation.color import mean_and_std, normalize
from tencrop.data.augmentation.mean_image import central_mean, mean_image_of
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.loader import Loader
from tencrop.data.sampling.sampler import split_to_fit_memory
from tencrop.data.store.manifest import Split, open_split
from tencrop.evaluation.protocols import views
from tencrop.evaluation.publishers import with_preprocessing
from tencrop.evaluation.targets import EvaluationTarget
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import build_model
from tencrop.models.weights import apply_weights, load_weights, statistics_of
from tencrop.training.data_module import validation_protocol

BATCH_SIZE = 32  # images per forward pass


class Images(NamedTuple):
    """Central crops of some images of a split."""

    index: Tensor  # type: ignore[assignment]  # int64 [B], sample indices; hides tuple.index
    labels: Tensor  # int64 [B]
    pixels: Tensor  # uint8 [B, image_size, image_size, 3]


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode on the CPU, and its data."""

    config: Config
    network: nn.Module  # with the trained weights, or their moving average
    initial: nn.Module  # with the weights that the seed draws
    started_from_initial: bool  # False for training.init.checkpoint, and for weights of other programs
    classes: list[str]
    mean: list[float]  # on the scale [0, 255], as `std`
    std: list[float]
    weights_sha256: str
    mean_image: Tensor | None = None  # [S, S, 3] of mean_image_of, subtracted in place of the mean

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalize central crops for the network: uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
        image = self.mean_image
        mean = (
            torch.tensor(self.mean)
            if image is None
            else central_mean(image, self.config.normalization, size=pixels.shape[1])
        )
        return normalize(pixels, mean, torch.tensor(self.std))

    def split(self, name: str) -> Split:
        """Open the split "train" or "val"."""
        data = self.config.data
        return open_split(data.root, name, source=data.source, data=data.name)

    def load_images(self, split: str, index: Sequence[int] | np.ndarray) -> Images:
        """Read the central crops used for validation during training, in the order of `index`."""
        parts = list(self._batches(self.split(split), np.asarray(index, np.int64)))
        return Images(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _batches(self, split: Split, index: np.ndarray) -> Iterator[Images]:
        protocol = validation_protocol(self.config)
        plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
        batches = [index[start : start + BATCH_SIZE] for start in range(0, len(index), BATCH_SIZE)]
        # images are padded to the largest of their batch; this splits batches that would take too much memory
        batches = split_to_fit_memory(batches, plan(np.arange(split.num_samples)).sizes)
        threads = num_workers(self.config.hardware)
        with Loader(
            split, lambda _: batches, lambda i, _: plan(i), filter=protocol.filter, num_threads=threads
        ) as loader:
            for batch in loader.batches(epoch=0):
                (crop,) = views(
                    batch.images, batch.sizes, protocol
                )  # copies: the loader reuses the memory of its images
                yield Images(torch.from_numpy(batch.index), batch.labels, crop)


def load_trained_model(target: EvaluationTarget) -> TrainedModel:
    """Load the target's weights, and build the network a second time with the weights that its seed draws."""
    weights = load_weights(target.path, ema=target.config.ema)
    # Training seeds torch's generator in the same way before it builds the network, so `initial` comes first.
    torch.manual_seed(weights.metadata.get("seed", target.config.seed))
    initial = build_model(target.config.model, num_classes=target.num_classes)
    network = build_model(target.config.model, num_classes=target.num_classes)
    config, _ = with_preprocessing(target, network, weights)
    apply_weights(network, weights.state, source=str(target.path), name=config.model.name)
    # a checkpoint of ours carries the statistics that it was trained with; foreign weights use those of the data
    data = open_split(config.data.root, "val", source=config.data.source, data=config.data.name)
    statistics = statistics_of(weights, target.path) or data.statistics
    mean, std = mean_and_std(config.normalization, statistics)
    mean_image = mean_image_of(config, statistics, size=config.image_size)
    return TrainedModel(
        config=config,
        network=network.eval(),
        initial=initial.eval(),
        started_from_initial=bool(weights.metadata) and config.training.init.checkpoint is None,
        classes=target.manifest["classes"],
        mean=mean,
        std=std,
        weights_sha256=weights_sha256(network.state_dict()),
        mean_image=mean_image,
    )


def select_images(split: Split, wanted: Sequence[int] | None, *, num_images: int) -> np.ndarray:
    """Choose indices of a split: `wanted`, or `num_images` in a fixed order from as many classes as possible."""
    if wanted is None:
        order = hash_order(split.num_samples)
        # rank of each image within its class: sorting by it takes one image of every class before the second of any
        turns = np.zeros(split.num_samples, np.int64)
        for label in np.unique(split.labels):
            of_class = split.labels[order] == label
            turns[of_class] = np.arange(of_class.sum())
        return order[np.argsort(turns, kind="stable")][:num_images]
    for index in wanted:
        if not 0 <= index < split.num_samples:
            raise UserError(f"images={list(wanted)}: the {split.name} split has images 0 to {split.num_samples - 1}")
    return np.asarray(wanted, np.int64)


def hash_order(num_samples: int) -> np.ndarray:
    """Indices below `num_samples` in a fixed pseudorandom order.

    By SHA-256 instead of a generator, so that the order never depends on the version of a library.
    """
    # "seeing" is the package's former name; another string would show other images than existing figures do
    hashes = [hashlib.sha256(b"seeing %d" % index).digest()[:8] for index in range(num_samples)]
    return np.argsort(np.array([int.from_bytes(digest) for digest in hashes], np.uint64), kind="stable")

"""What is looked at: a network with its weights, and the images that it saw. Called by __main__.py."""

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
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.loader import Loader
from tencrop.data.sampling.sampler import within_memory
from tencrop.data.store.manifest import Split, open_split
from tencrop.evaluation.protocols import views
from tencrop.evaluation.publishers import with_preprocessing
from tencrop.evaluation.targets import EvaluationTarget
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.factory import build_model
from tencrop.models.weights import apply_weights, load_weights
from tencrop.training.data_module import validation_protocol

AT_ONCE = 32  # images in one forward pass


class Pictures(NamedTuple):
    """Central crops of some images of a split."""

    index: Tensor  # type: ignore[assignment]  # int64 [B], sample indices; hides tuple.index
    labels: Tensor  # int64 [B]
    pixels: Tensor  # uint8 [B, image_size, image_size, 3]


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode on the CPU, and its data."""

    config: Config
    network: nn.Module
    initial: nn.Module  # as training found it
    classes: list[str]
    mean: list[float]  # on [0, 255], as `std`
    std: list[float]
    weights_sha256: str

    def inputs(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] as the network wants it: float32 [B, 3, H, W]."""
        return normalize(pixels, torch.tensor(self.mean), torch.tensor(self.std))

    def split(self, name: str) -> Split:
        """train or val."""
        data = self.config.data
        return open_split(data.root, name, source=data.source, data=data.name)

    def pictures(self, split: str, index: Sequence[int] | np.ndarray) -> Pictures:
        """The central crops by which a run validates itself, in the order of `index`."""
        parts = list(self._batches(self.split(split), np.asarray(index, np.int64)))
        return Pictures(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _batches(self, split: Split, index: np.ndarray) -> Iterator[Pictures]:
        protocol = validation_protocol(self.config)
        plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
        batches = [index[start : start + AT_ONCE] for start in range(0, len(index), AT_ONCE)]
        batches = within_memory(batches, plan(np.arange(split.num_samples)).sizes)
        threads = num_workers(self.config.hardware)
        with Loader(
            split, lambda _: batches, lambda i, _: plan(i), filter=protocol.filter, num_threads=threads
        ) as loader:
            for batch in loader.batches(epoch=0):
                (crop,) = views(batch.images, batch.sizes, protocol)  # new memory: the loader fills its own again
                yield Pictures(torch.from_numpy(batch.index), batch.labels, crop)


def load_trained_model(member: EvaluationTarget) -> TrainedModel:
    """The member's network with its weights, and beside it with those that its seed drew for training."""
    weights = load_weights(member.path, ema=member.config.ema)
    torch.manual_seed((weights.facts or {}).get("seed", member.config.seed))
    initial = build_model(member.config.model, num_classes=member.num_classes)
    network = build_model(member.config.model, num_classes=member.num_classes)
    config, _ = with_preprocessing(member, network, weights.facts)
    apply_weights(network, weights.state, source=str(member.path), name=config.model.name)
    mean, std = mean_and_std(config.normalization, weights.facts or member.manifest["statistics"])
    classes = member.manifest["classes"]
    return TrainedModel(
        config, network.eval(), initial.eval(), classes, mean, std, weights_sha256(network.state_dict())
    )


def chosen(split: Split, wanted: Sequence[int] | None, *, num_images: int) -> np.ndarray:
    """Indices of a split: those `wanted`, or the first by a fixed hash, as many classes as there are among them."""
    if wanted is None:
        order = by_hash(split.num_samples)
        turns = np.zeros(split.num_samples, np.int64)  # how many of its class stand before it
        for label in np.unique(split.labels):
            of_class = split.labels[order] == label
            turns[of_class] = np.arange(of_class.sum())
        return order[np.argsort(turns, kind="stable")][:num_images]
    for index in wanted:
        if not 0 <= index < split.num_samples:
            raise UserError(f"images={list(wanted)}: the {split.name} split has images 0 to {split.num_samples - 1}")
    return np.asarray(wanted, np.int64)


def by_hash(num_samples: int) -> np.ndarray:
    """All indices below `num_samples` in the order of a fixed hash."""
    hashes = [hashlib.sha256(b"seeing %d" % index).digest()[:8] for index in range(num_samples)]
    return np.argsort(np.array([int.from_bytes(digest) for digest in hashes], np.uint64), kind="stable")

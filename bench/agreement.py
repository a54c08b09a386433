"""Whether a trained network answers alike on our stores and on the original files through Pillow.

    python bench/agreement.py RUN ROOT...

RUN is a folder that train.py made; ROOT one that prepare.py made of any photographs (the classes do not matter: what
is compared is which class scores highest). Both loaders cut the run's central crop of every image of the training
split, once from the store and once from the original file, resized by Pillow. At least 99% of the answers must agree;
exit code 1 where they do not. A network changes its mind on an image that it is undecided about, so a store of the
original bytes must reach 100%, and one of fewer pixels loses some through its second JPEG encoding.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tencrop.cli.choices import CONF
from tencrop.cli.run_overrides import config_of_run
from tencrop.config import num_workers
from tencrop.data.augmentation.color import normalize
from tencrop.data.augmentation.crops import central_crops
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.loader import BaseLoader, Loader
from tencrop.data.loading.reference import TorchLoader
from tencrop.data.sampling.sampler import evaluation_batches
from tencrop.data.store.manifest import Split, open_split
from tencrop.models.factory import build_model
from tencrop.models.weights import load_weights
from tencrop.training.data_module import validation_protocol

LEAST_AGREEMENT = 0.99
BATCH = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("roots", nargs="+", metavar="ROOT")
    options = parser.parse_args()
    answer = Network(options.run)
    is_good = True
    for root in options.roots:
        split = open_split(root, "train")
        same, difference, num_images = compare(answer, split)
        is_good &= same >= LEAST_AGREEMENT * num_images
        print(f"{root}: {same} of {num_images} answers agree ({same / num_images:.1%});", end=" ")
        print(f"crops differ by {difference:.2f} gray levels on average")
    return 0 if is_good else 1


class Network:
    """The last checkpoint of a run, EMA weights where it has them: images uint8 [B, H, W, 3] -> classes int64 [B]."""

    def __init__(self, run: Path) -> None:
        self.config, path = config_of_run(run, [], conf=CONF), run / "checkpoints" / "last.ckpt"
        weights = load_weights(path)
        num_classes = len(next(reversed([value for value in weights.state.values() if value.ndim])))
        self.network = build_model(self.config.model, num_classes=num_classes).eval()
        self.network.load_state_dict(weights.state)
        self.mean, self.std = torch.tensor(weights.metadata["mean"]), torch.tensor(weights.metadata["std"])

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        inputs = normalize(images, self.mean, self.std, channels_last=self.config.model.channels_last)
        return self.network(inputs).argmax(1)


def compare(answer: Network, split: Split) -> tuple[int, float, int]:
    """How many answers are the same, the mean absolute difference of the crops, the number of images."""
    protocol = validation_protocol(answer.config)
    parts = evaluation_batches(np.arange(split.num_samples), micro_batch=BATCH, rank=0, num_ranks=1)
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
    kinds: tuple[type[BaseLoader], ...] = (Loader, TorchLoader)
    threads = num_workers(answer.config.hardware)
    ours, reference = (
        kind(split, lambda _: parts, lambda index, _: plan(index), filter=protocol.filter, num_threads=threads)
        for kind in kinds
    )
    same, difference = 0, 0.0
    with ours, reference:
        for pair in zip(ours.batches(0), reference.batches(0), strict=True):
            crops = [central_crops(batch.images, batch.sizes, size=protocol.size) for batch in pair]
            same += int((answer(crops[0]) == answer(crops[1])).sum())
            difference += float((crops[0].float() - crops[1].float()).abs().mean()) * len(crops[0])
    return same, difference / split.num_samples, split.num_samples


if __name__ == "__main__":
    sys.exit(main())

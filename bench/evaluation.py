"""Benchmark of the evaluation: images per second of ours and of torchvision's way, on the same network and images.

    python bench/evaluation.py ROOT [--model alexnet_2012] [--protocol ten_crop] [--images 200] [--rounds 3]

ROOT is a folder prepared by prepare.py whose store keeps the original files. Every measurement is a fresh process. It
builds the network from seed 0, scores 32 images to warm up, and then the first --images images of val. Rounds
alternate.

ours         evaluate.py's scoring
ours, libc   the same without evaluation/allocator.py, so that glibc gives freed activations back to the kernel
torchvision  Resize(256), TenCrop(224) or CenterCrop(224), ToTensor and Normalize in a DataLoader with a worker for
             each thread; views of a batch in one forward pass and averaged, as in the documentation of TenCrop

The classes of all images must be the same in all three. Exit code 1: they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("ours", "ours, libc", "torchvision")
PROTOCOLS = {"center": 1, "ten_crop": 10}  # views of an image
NUM_WARM_UP = 32
SIDE, SIZE = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's constants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--model", default="alexnet_2012", help="a file of conf/model")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="ten_crop")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="medians are printed")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, and workers of the loader")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)  # run as one measurement
    options = parser.parse_args()
    if options.serve:
        print(json.dumps(measure(options)))
        return 0
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            rounds[kind].append(in_new_process(kind))
    print(f"{options.model}, {options.protocol}, {options.images} images, {options.threads} threads")
    print(f"{'':12s}{'img/s':>8s}{'/torchvision':>14s}{'user s':>8s}{'system s':>10s}{'faults/img':>12s}{'MB':>7s}")
    medians = {
        kind: {key: statistics.median(one[key] for one in rounds[kind]) for key in rounds[kind][0] if key != "classes"}
        for kind in KINDS
    }
    for kind, row in medians.items():
        ratio = row["rate"] / medians["torchvision"]["rate"]
        print(
            f"{kind:12s}{row['rate']:8.1f}{ratio:14.2f}{row['user']:8.1f}{row['system']:10.1f}{row['faults']:12.0f}"
            f"{row['memory']:7.0f}"
        )
    reference = rounds["torchvision"][0]["classes"]
    num_others = sum(one["classes"] != reference for kind in KINDS for one in rounds[kind])
    print("all classes are equal" if num_others == 0 else f"classes differ in {num_others} measurements")
    return min(num_others, 1)


def in_new_process(kind: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--serve", kind], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rate in images per second, processor seconds, page faults an image, peak memory, and the class of each image."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in evaluate.py
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    score = (torchvision_scorer if options.serve == "torchvision" else our_scorer)(options)
    score(NUM_WARM_UP)
    before, start = usage(), time.perf_counter()
    classes = score(options.images)
    seconds, after = time.perf_counter() - start, usage()
    user, system, faults = (b - a for a, b in zip(before, after, strict=True))
    assert len(classes) == options.images, f"{options.root} has only {len(classes)} val images"
    return {
        "rate": options.images / seconds,
        "user": user,
        "system": system,
        "faults": faults / options.images,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "classes": classes.tolist(),
    }


def usage() -> tuple[float, float, int]:
    """User and system seconds and minor page faults, with those of the workers that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return (
        sum(one.ru_utime for one in both),
        sum(one.ru_stime for one in both),
        sum(one.ru_minflt for one in both),
    )


def our_scorer(options: argparse.Namespace) -> Callable[[int], np.ndarray]:
    import tencrop.evaluation.inference as inference
    from tencrop.cli.choices import CONF
    from tencrop.cli.compose import compose_training
    from tencrop.evaluation.predictions import Scores

    words = [f"model={options.model}", "experiment=null", "data=imagefolder", f"data.root={options.root}"]
    words += [f"protocol={options.protocol}", f"protocol.side={SIDE}", f"protocol.size={SIZE}"]
    words += ["protocol.filter=bilinear", f"hardware.workers={options.threads}"]
    if options.serve == "ours, libc":
        inference.keep_freed_memory = lambda: False
    network = build(options)

    def score(num_images: int) -> np.ndarray:
        config = compose_training(words, CONF)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
            split = inference.open_val_split(config)
            names.write("\n".join(split.names(index) for index in range(min(num_images, split.num_samples))))
            names.flush()
            config.data.subset_of_val = names.name
            mean, std = ([255 * value for value in values] for values in (MEAN, STD))
            task = inference.ScoringTask(config, Path("seed 0"), "raw", 1000, mean, std, {})
            scores: Scores = inference.score_part(task, network, split, rank=0, num_ranks=1)
        return scores.softmax.argmax(1).numpy()

    return score


def torchvision_scorer(options: argparse.Namespace) -> Callable[[int], np.ndarray]:
    import torch
    from peers import TorchvisionPillow
    from torch.utils.data import DataLoader, Dataset, Subset
    from torchvision import transforms

    from tencrop.data.store.manifest import open_split

    one = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if options.protocol == "ten_crop":
        each = transforms.Compose(one)
        crops = [transforms.TenCrop(SIZE), transforms.Lambda(lambda views: torch.stack([each(v) for v in views]))]
    else:
        crops = [transforms.CenterCrop(SIZE), *one, transforms.Lambda(lambda view: view[None])]
    transform = transforms.Compose([transforms.Resize(SIDE), *crops])
    split = open_split(options.root, "val")

    class Images(Dataset):
        def __len__(self) -> int:
            return split.num_samples

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(TorchvisionPillow.read(split.read_original(index)))

    network = build(options).eval().to(memory_format=torch.channels_last)

    def batches(num_images: int) -> Iterator[torch.Tensor]:
        images = Subset(Images(), range(min(num_images, split.num_samples)))
        yield from DataLoader(images, batch_size=32, num_workers=options.threads)

    @torch.inference_mode()
    def score(num_images: int) -> np.ndarray:
        classes = []
        for views in batches(num_images):  # [B, V, 3, H, W]
            logits = network(views.flatten(0, 1).to(memory_format=torch.channels_last)).unflatten(0, views.shape[:2])
            classes.append(logits.softmax(2).mean(1).argmax(1))
        return torch.cat(classes).numpy()

    return score


def build(options: argparse.Namespace) -> Any:
    from tencrop.cli.choices import CONF
    from tencrop.cli.compose import compose_training
    from tencrop.models.factory import build_model

    model = compose_training([f"model={options.model}", "experiment=null"], CONF).model
    return build_model(model, num_classes=1000)


if __name__ == "__main__":
    sys.exit(main())

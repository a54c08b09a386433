"""Training throughput: images per second of our fit, from the loader and on one repeated batch, beside bare loops.

    python bench/throughput.py ROOT [--models resnet50 ...] [--batches 32 256] [--steps 60] [--rounds 3]
    python bench/throughput.py ROOT --small      rehearsal on a CPU: ResNet-18, 64 px, batch 32

ROOT is a folder prepared by prepare.py with at least a batch of images. Every measurement is a fresh process on the
GPU, or on the CPU where there is none; rounds alternate. bf16 autocast, random-resized crops with flips.

torchvision     eager, as torchvision's reference script: NCHW, torch's SGD, one float32 batch repeated
bare, compiled  torch.compile(network) in channels-last, one float32 batch repeated: the limit
fit             our fit (train.py) on one batch repeated on the device, with its augmentation and bookkeeping
fit, loader     the same, fed by our loader
fit, compiled   the fit with training.compile=default, fed by our loader
fit, kept       on a CPU: the fit with evaluation/allocator.py, so that glibc keeps freed memory

Printed: median images per second; minimum, median and maximum of the ratio to `bare, compiled` in the same round; model
FLOP utilization on a GPU (2 x 3 x the multiply-adds of tencrop.complexity, over NVIDIA's dense bf16 peak); peak memory,
of the GPU or else of the process; milliseconds of all CPU cores an image; page faults and seconds in the kernel, which
an allocator changes. On a CPU, the loader's workers take cores from the network: --threads 1 on two cores gives each
one of its own, as on a GPU.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tencrop.text_tables import aligned

KINDS = ("torchvision", "bare, compiled", "fit", "fit, loader", "fit, compiled", "fit, kept")
LIMIT = "bare, compiled"
MODELS = ("resnet50", "resnet18", "alexnet_2012", "vit_small_patch16_224", "convnext_tiny")
# FLOP/s of dense bf16 products, without sparsity: NVIDIA's data sheets of the SXM modules
PEAK_FLOPS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="files of conf/model")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[32, 128, 256, 512, 1024], help="ResNet-50's; others 256"
    )
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--steps", type=int, help="optimizer steps, 60 or 12 (--small); the first third warms up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, help="torch's threads, and workers of the loader; all cores each")
    parser.add_argument("--small", action="store_true", help="ResNet-18, 64 px, batch 32")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)  # run as one measurement
    options = parser.parse_args()
    options.steps = options.steps if options.steps is not None else 12 if options.small else 60
    if options.steps < 3:
        parser.error("--steps: at least 3, of which the first third warms up")
    if options.small:
        options.models, options.batches, options.size = ["resnet18"], [32], 64
    if options.serve:
        print(json.dumps(measure(options)))
        return
    for model in options.models:
        for batch in options.batches if model == "resnet50" or options.small else [256]:
            rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
            for _ in range(options.rounds):
                for kind in options.kinds:
                    rounds[kind].append(in_new_process(kind, model, batch, options))
            print_table(model, batch, options, rounds)


def in_new_process(kind: str, model: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    words = [options.root, "--models", model, "--batches", str(batch), "--size", str(options.size)]
    words += ["--steps", str(options.steps), "--serve", kind]
    words += [] if options.threads is None else ["--threads", str(options.threads)]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(model: str, batch: int, options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> None:
    rounds = {kind: measured for kind, measured in rounds.items() if "skipped" not in measured[0]}
    device = next(iter(rounds.values()))[0]["device"]
    title = f"{model}, {options.size} px, batch {batch}, {options.steps} steps, {options.rounds} rounds, {device}"
    title += "" if options.threads is None else f", --threads {options.threads} on {os.cpu_count()} cores"
    print(f"\n{title}" + ("; not measured on a GPU" if device == "cpu" else ""))
    table: list[tuple[str, ...]] = [
        ("", "img/s", "/ compiled: least", "median", "most", "MFU", "MB", "CPU ms/img", "faults/img", "kernel s")
    ]
    for kind, measured in rounds.items():
        ratios = ["–"] * 3
        if LIMIT in rounds:
            values = [one["rate"] / limit["rate"] for one, limit in zip(measured, rounds[LIMIT], strict=True)]
            ratios = [f"{of(values):.3f}" for of in (min, statistics.median, max)]
        row = {key: statistics.median(one[key] for one in measured) for key in measured[0] if key != "device"}
        utilization = "–" if np.isnan(row["utilization"]) else f"{row['utilization']:.1%}"
        costs = (f"{row['memory']:.0f}", f"{row['cpu_ms']:.2f}", f"{row['faults']:.1f}", f"{row['system']:.2f}")
        table.append((kind, f"{row['rate']:.1f}", *ratios, utilization, *costs))
    print("\n".join(aligned(table, left={0})))
    if {"fit", "fit, loader"} <= rounds.keys():
        fed = [a["rate"] / b["rate"] for a, b in zip(rounds["fit, loader"], rounds["fit"], strict=True)]
        print(f"fed by the loader / repeated batch: {statistics.median(fed):.3f} ({min(fed):.3f} to {max(fed):.3f})")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    [model], [batch], kind = options.models, options.batches, options.serve
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "fit, kept":
        if device == "cuda":
            return {"skipped": "memory of a GPU is not glibc's"}
        from tencrop.evaluation.allocator import keep_freed_memory

        assert keep_freed_memory()
    words = [f"model={model}", "experiment=null", f"training.global_batch={batch}", "training.precision=bf16"]
    words += [f"image_size={options.size}", f"short_side={options.size * 8 // 7}", "augmentation=torchvision"]
    words += ["data=imagefolder", f"data.root={options.root}", f"hardware={'gpu1' if device == 'cuda' else 'cpu'}"]
    # no validation between the timed steps: a small data set has many epochs
    words += ["training.epochs=1000000", "training.evaluate_every_epochs=1000000"]
    words.append(f"training.max_steps={options.steps}")
    words += [] if options.threads is None else [f"hardware.workers={options.threads}"]
    if kind == "fit, compiled":
        words += ["training.compile=default", "deterministic=false"]
    meter = Meter(options.steps, batch, device)
    (run_bare if kind in ("torchvision", LIMIT) else run_fit)(words, kind, meter)
    return {**meter.facts(), "utilization": utilization(words, meter.rate), "device": meter.device_name()}


class Meter:
    """Call after every step; times the last two thirds of `num_steps`."""

    def __init__(self, num_steps: int, batch: int, device: str) -> None:
        self.num_steps, self.batch, self.device = num_steps, batch, device
        self.first, self.step = num_steps // 3, 0
        self.rate = 0.0  # images/s
        self.costs: dict[str, float] = {}

    def __call__(self) -> None:
        self.step += 1
        if self.step in (self.first, self.num_steps):
            from loops import wait_for_device

            wait_for_device()
            used = resource.getrusage(resource.RUSAGE_SELF)
            now = np.array([time.perf_counter(), time.process_time(), used.ru_minflt, used.ru_stime])
            if self.step == self.first:
                self.start = now
            else:
                num_images = (self.num_steps - self.first) * self.batch
                seconds, cpu_s, faults, system = (now - self.start).tolist()
                self.rate = num_images / seconds
                self.costs = {"cpu_ms": 1000 * cpu_s / num_images, "faults": faults / num_images, "system": system}

    def facts(self) -> dict[str, float]:
        import torch

        if self.device == "cuda":
            memory = torch.cuda.max_memory_allocated() / 1e6
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        return {"rate": self.rate, "memory": memory, **self.costs}

    def device_name(self) -> str:
        import torch

        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"


def run_fit(words: list[str], kind: str, meter: Meter) -> None:
    from loops import Timed
    from pytorch_lightning import Callback
    from torch.utils.data import DataLoader

    from tencrop.config import derive_batches
    from tencrop.data.store.manifest import read_manifest
    from tencrop.training.data_module import DataModule
    from tencrop.training.fit import build, fit

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, classifier: Any, *_: Any) -> None:
            if classifier.is_at_step_boundary:
                meter()
                if meter.step == meter.num_steps:
                    raise Timed

    class Repeated(DataModule):
        """The first batch of the run, copied to the device once, in every step."""

        def train_dataloader(self) -> Any:
            first = next(iter(super().train_dataloader()))
            device = self.trainer.strategy.root_device  # type: ignore[union-attr]
            batch: Any = self.transfer_batch_to_device(first, device, 0)
            repeated: Any = [batch] * len(self.positions())
            return DataLoader(repeated, batch_size=None)  # Lightning takes a plain list for several loaders

        def check(self, *_: Any) -> None:
            pass  # it would find that the sampler has other images next

    config = compose(words)
    batches, manifest = derive_batches(config), read_manifest(config.data.root, config.data.name)
    data, classifier = build(config, batches=batches, manifest=manifest)
    if kind in ("fit", "fit, kept"):
        data = Repeated(config, batches)
    with tempfile.TemporaryDirectory() as folder, suppress(Timed):
        fit(data, classifier, run_dir=Path(folder), callbacks=[Watch()])


def run_bare(words: list[str], kind: str, meter: Meter) -> None:
    """A loop of forward, backward and optimizer step on one random batch; torchvision's also leaves NCHW."""
    import torch
    from torch import nn

    from tencrop.models.factory import build_model

    config = compose(words)
    torch.manual_seed(0)
    network = build_model(config.model, num_classes=1000, image_size=config.image_size).to(meter.device).train()
    images = torch.randn(meter.batch, 3, config.image_size, config.image_size, device=meter.device)
    labels = torch.randint(1000, (meter.batch,), device=meter.device)
    step: Callable[..., Any] = network
    if kind == LIMIT:
        network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
        step = torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(meter.num_steps):
        with torch.autocast(meter.device, torch.bfloat16):
            loss = nn.functional.cross_entropy(step(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        meter()


def utilization(words: list[str], rate: float) -> float:
    """Model FLOP utilization; NaN on a device whose peak is not listed.

    A training step costs 3 forward passes (the gradients by inputs and by weights cost one each), and a multiply-add 2
    FLOPs.
    """
    import torch

    from tencrop.complexity.count import count
    from tencrop.models.factory import build_model

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for device, flops in PEAK_FLOPS.items() if device in name), np.nan)
    if np.isnan(peak):
        return peak
    config = compose(words)
    network = build_model(config.model, num_classes=1000, image_size=config.image_size)
    return 2 * 3 * count(network, config.image_size).mult_adds * rate / peak


def compose(words: list[str]) -> Any:
    from tencrop.cli.choices import CONF
    from tencrop.cli.compose import compose_training

    return compose_training(words, CONF)


if __name__ == "__main__":
    main()

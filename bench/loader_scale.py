"""The loaders of one node of 64 ranks on a large, made-up data set: start-up, memory and waiting.

    python bench/loader_scale.py [--entries 1281167 14000000] [--ranks 8]

The rows of the store are real, and all of them point to one photograph. Each rank is a process with the data module of
a training. It consumes its part of 64 at half the pace that the node's cores can decode; a rank that finds no batch
ready waits. Memory is private to a process (anonymous pages); the mapped store is shared and not counted.
"""

import argparse
import io
import json
import multiprocessing as mp
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training
from tencrop.config import Config, derive_batches
from tencrop.config.cores import num_granted_cores
from tencrop.text_tables import aligned

NUM_RANKS, RANKS_PER_NODE, PER_RANK = 64, 8, 32
NUM_STEPS = 20  # of each rank, after its first batch
PACE = 0.5  # of what the cores decode
READY_S = 0.005  # a batch that arrives within this time was ready


def make_store(folder: Path, num_entries: int) -> Path:
    """A prepared folder whose train split has `num_entries` rows that all point to one JPEG of 500 x 375 pixels."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from tencrop.data.preparation.prepare import prepare
    from tencrop.data.store import beton, manifest

    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize((500, 375)).save(buffer, "JPEG", quality=90)
    for split in manifest.SPLITS:
        for number in range(NUM_RANKS):
            path = folder / "source" / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
    root = folder / "prepared"
    prepare(training(root, source=folder / "source").data, workers=1, progress=False)
    content = manifest.read_manifest(root)
    facts = content["splits"]["train"]
    facts |= {"num_samples": num_entries, "files": "large.npy"}
    facts["tables_sha256"] = write_large(root / facts["beton"], num_entries, buffer.getvalue())
    # Sparse: only names of damaged samples are ever read from this table.
    row = np.load(root / content["splits"]["val"]["files"]).dtype
    np.lib.format.open_memmap(root / facts["files"], mode="w+", dtype=row, shape=(num_entries,)).flush()
    facts |= {name: (root / facts[name[:-6]]).stat().st_size for name in ("beton_bytes", "files_bytes")}
    content["sha256"] = manifest.manifest_sha256(content)
    (root / "manifest.json").write_text(json.dumps(content))
    assert beton.Beton(root / facts["beton"]).num_samples == num_entries
    return root


def write_large(path: Path, num_entries: int, jpeg: bytes) -> str:
    """A .beton file of `num_entries` rows with one payload; returns the digest of its tables."""
    from tencrop.data.store.beton import ALLOCATION, FIELD, HEADER, JPEG, METADATA_START, SAMPLE, tables_sha256

    fields = np.fromfile(path, FIELD, count=2, offset=HEADER.itemsize)
    header = np.fromfile(path, HEADER, count=1)
    metadata = np.zeros(num_entries, SAMPLE)
    start = METADATA_START + metadata.nbytes
    metadata["image"] = (JPEG, 500, 375, start)
    metadata["label"] = np.arange(num_entries) % 2
    allocations = np.zeros(num_entries, ALLOCATION)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = np.arange(num_entries), start, len(jpeg)
    header["num_samples"], header["alloc_table_ptr"] = num_entries, start + len(jpeg)
    with path.open("wb") as file:
        for part in (header, fields, metadata, jpeg, allocations):
            file.write(part if isinstance(part, bytes) else part.tobytes())
    return tables_sha256(metadata, allocations["size"])


def training(root: Path, source: Path | None = None) -> Config:
    words = ["model=resnet50", "data=imagefolder", f"data.root={root}", f"data.source={source or 'null'}"]
    words += ["hardware=cpu", "hardware.workers=1", f"training.global_batch={NUM_RANKS * PER_RANK}"]
    config = compose_training(words, CONF)
    hardware = replace(config.hardware, devices=RANKS_PER_NODE, nodes=NUM_RANKS // RANKS_PER_NODE)
    return replace(config, hardware=hardware)


class PeakMemory(threading.Thread):
    """Samples the private memory of this process every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak_bytes = private_bytes()
        self.start()

    def run(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, private_bytes())
            time.sleep(0.005)


def private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("/proc/self/status has no RssAnon")


def run_rank(root: Path, rank: int, step_s: float, barrier: Any, results: Any) -> None:
    """Put (rank, facts): start-up times, memory, and how often and how long a batch was not ready."""
    import torch

    from tencrop.training.data_module import DataModule

    torch.set_num_threads(1)
    config = training(root)
    memory, clock = PeakMemory(), time.perf_counter
    start = clock()
    data = DataModule(config, derive_batches(config))
    opened = clock()
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_step=0, global_rank=rank, world_size=NUM_RANKS, strategy=strategy)  # type: ignore[assignment]
    data.order(0)
    ordered = clock()
    batches = iter(data.train_dataloader())
    next(batches)
    loaded = clock()
    facts = {"open_s": opened - start, "order_s": ordered - opened, "first_batch_s": loaded - ordered}
    facts |= {"peak": memory.peak_bytes - memory.start_bytes, "kept": private_bytes() - memory.start_bytes}
    barrier.wait()
    waits = consume(lambda: next(batches), step_s)
    results.put((rank, facts | {"num_waits": len(waits), "longest_s": max(waits, default=0.0)}))
    data.close()


def consume(take: Callable[[], object], step_s: float) -> list[float]:
    """Take NUM_STEPS batches, one every `step_s` seconds; returns the waits that were longer than READY_S."""
    waits = []
    for _ in range(NUM_STEPS):
        time.sleep(step_s)  # the training step, on a device of its own
        start = time.perf_counter()
        take()
        if (waited := time.perf_counter() - start) > READY_S:
            waits.append(waited)
    return waits


def images_per_s_per_core(root: Path) -> float:
    from tencrop.training.probe import one_device, time_loader

    config = training(root)
    batches = derive_batches(config)
    return batches.per_device / time_loader(replace(config, hardware=one_device(config)), batches).seconds


def simulate(root: Path, num_ranks: int, step_s: float) -> list[dict[str, float]]:
    """The facts of the ranks of one node, which run at the same time."""
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(num_ranks), context.SimpleQueue()
    processes = [
        context.Process(target=run_rank, args=(root, rank, step_s, barrier, results)) for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(num_ranks)]


def main(entries: list[int], num_ranks: int) -> None:
    rows: list[tuple[str, ...]] = [
        ("images", "open", "order", "first batch", "memory, peak", "kept", "steps", "waited", "longest")
    ]
    for num_entries in entries:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            root = make_store(Path(folder), num_entries)
            per_core = images_per_s_per_core(root)
            step_s = num_ranks * PER_RANK / (PACE * num_granted_cores() * per_core)
            ranks = simulate(root, num_ranks, step_s)
        worst = {key: max(facts[key] for facts in ranks) for key in ranks[0]}
        times = [f"{worst[key]:.2f} s" for key in ("open_s", "order_s", "first_batch_s")]
        memory = [f"{worst[key] / 1e6:,.0f} MB" for key in ("peak", "kept")]
        waits = [str(int(sum(facts["num_waits"] for facts in ranks))), f"{worst['longest_s']:.2f} s"]
        rows.append((f"{num_entries:,}", *times, *memory, str(num_ranks * NUM_STEPS), *waits))
        print(f"{num_entries:,} images: {per_core:,.0f} images/s a core, {step_s:.2f} s a step", file=sys.stderr)
    print(f"{num_ranks} of {NUM_RANKS} ranks, {PER_RANK} images each, {num_granted_cores()} cores; the slowest rank:")
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", nargs="+", type=int, default=[1_281_167, 14_000_000], help="images of the store")
    parser.add_argument("--ranks", type=int, default=RANKS_PER_NODE, help="ranks of the node that run")
    options = parser.parse_args()
    main(options.entries, options.ranks)

"""Benchmark of the loaders: speed, memory and pixel accuracy of ours, stock ffcv, torchvision and a plain full decode.

    python bench/loading.py ROOT... [--workers 2] [--rounds 5] [--starts 3] [--images 4000] [--peers NAME...]

ROOT is a folder prepared by prepare.py; the benchmark prints one table for each. The loaders ("peers") and their
settings are in peers.py.

Start and memory: each peer runs alone in fresh processes. Measured are the time from the start of the process to its
first batch, and the peak memory of an epoch (resident memory of the process plus private memory of its workers).
Speed: all peers are kept ready, and rounds alternate between them. Printed are medians by wall-clock time and by CPU
time, which other jobs on the machine affect less.
Pixels: 200 images at our crop boxes, compared with Pillow on the bytes that the peer reads (mean and largest
difference, in gray levels) and with Pillow on the original files (mean; includes the loss by the store).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import AUGMENTATION, FILTER, PEERS, SIZE, Peer
from PIL import Image

from tencrop.data.augmentation.plan import training_plan
from tencrop.data.loading.reference import cut, resize
from tencrop.data.store.beton import JPEG
from tencrop.data.store.manifest import Split, open_split

NUM_COMPARED = 200
COLUMNS = (
    ("img/s", "clock", "8.0f"),
    ("/ffcv", "clock_ratio", "6.2f"),
    ("img/cpu s", "processor", "9.0f"),
    ("/ffcv", "processor_ratio", "6.2f"),
    ("MB", "memory", "6.0f"),
    ("first s", "first", "7.2f"),
    ("mean", "mean", "5.2f"),
    ("max", "max", "4.0f"),
    ("originals", "originals", "9.2f"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", metavar="ROOT")
    parser.add_argument("--workers", type=int, default=2, help="number of cores for each peer")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; medians are printed")
    parser.add_argument("--starts", type=int, default=3, help="number of fresh processes that time the first batch")
    parser.add_argument("--images", type=int, default=4000, help="images in a round (torchvision: a quarter)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # run as the measured process of this peer
    options = parser.parse_args()
    for root in options.roots:
        options.root = root
        if options.serve:
            serve(PEERS[options.serve](options))
        else:
            print_table(measure(options), options)


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measurements by peer."""
    results = {name: measure_alone(name, options) for name in options.peers}
    processes = {name: Process(name, options) for name in options.peers}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in options.peers}
    # Alternate between the peers, so that a slow minute of the machine affects all of them.
    for number in range(1, options.rounds + 1):
        for name, process in processes.items():
            rates[name].append(process.rates(number))
    for name, process in processes.items():
        process.close()
        results[name]["clock"], results[name]["processor"] = np.median(rates[name], axis=0)
    for kind in ("clock", "processor"):
        for result in results.values():
            result[f"{kind}_ratio"] = result[kind] / results["ffcv"][kind] if "ffcv" in results else np.nan
    return results


def measure_alone(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time to the first batch, peak memory and pixel differences of a peer, with no other running."""
    firsts = []
    for start in range(options.starts):
        process = Process(name, options)
        firsts.append(process.first_batch_s)
        if start == options.starts - 1:
            facts = {"memory": process.most_memory, **process.ask({"do": "compare"})}
        process.close()
    return {"first": statistics.median(firsts), **facts}


def print_table(results: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    modes = open_split(options.root, "train").beton.modes
    print(
        f"\n{options.root}: {np.mean(modes == JPEG):.0%} JPEG, {options.workers} workers; medians of {options.rounds}"
    )
    print(f"{'':24s}" + " ".join(f"{title:>{int(form.split('.')[0])}s}" for title, _, form in COLUMNS))
    for name, result in results.items():
        values = (result.get(key, np.nan) for _, key, _ in COLUMNS)
        print(f"{name:24s}" + " ".join(f"{value:{form}}" for value, (_, _, form) in zip(values, COLUMNS, strict=True)))


class Process:
    """A peer in a fresh process that has run its first epoch. It answers questions with lines of JSON."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, options.root, "--serve", name]
        command += ["--workers", str(options.workers), "--images", str(options.images)]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.most_memory = 0.0  # megabytes
        is_over = threading.Event()
        watch = threading.Thread(target=self.watch_memory, args=[is_over], daemon=True)  # daemon: in case the peer dies
        watch.start()
        self.answer()
        self.first_batch_s = time.perf_counter() - start
        self.answer()
        is_over.set()
        watch.join()

    def rates(self, number: int) -> tuple[float, float]:
        """(images per second of wall-clock time, images per second of CPU time incl. workers) in one round."""
        wall, processor = time.perf_counter(), self.processor_s()
        num_images = self.ask({"do": "epoch", "number": number})["images"]
        return num_images / (time.perf_counter() - wall), num_images / (self.processor_s() - processor)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))}: died")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def watch_memory(self, is_over: threading.Event) -> None:
        while not is_over.wait(0.05):
            self.most_memory = max(self.most_memory, sum(self.of_each(memory_mb)))

    def processor_s(self) -> float:
        return sum(self.of_each(lambda pid, _: processor_s(pid)))

    def of_each(self, measure: Callable[[int, bool], float]) -> list[float]:
        """`measure(pid, is_worker)` of the process and of its workers that are still alive."""
        values, pid = [], self.process.pid
        try:
            workers = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in task_children(task)]
        except OSError:
            workers = []
        for one in (pid, *workers):
            try:
                values.append(measure(one, one != pid))
            except OSError:  # it has ended
                continue
        return values


def task_children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def processor_s(pid: int) -> float:
    """User and system time of all threads so far, including finished ones; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, is_worker: bool) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    # Workers share pages with their parent through fork, so count only their private ones.
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines}
    return (kilobytes["Private_Clean:"] + kilobytes["Private_Dirty:"] if is_worker else kilobytes["Rss:"]) / 1000


def serve(peer: Peer) -> None:
    """Main loop of a measured process: runs one epoch at once, then whatever is requested on its standard input."""
    for number, num_images in enumerate(peer.epoch(0)):
        if number == 0:
            print(json.dumps({"images": num_images}), flush=True)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "epoch":
            print(json.dumps({"images": sum(peer.epoch(question["number"]))}), flush=True)
        else:
            print(json.dumps(compare(peer)), flush=True)


def compare(peer: Peer) -> dict[str, float]:
    """Differences of the peer's crops from Pillow's, on the bytes that it reads and on the original files."""
    if not hasattr(peer, "cut"):
        return {}
    split = peer.split
    sizes = split.original_sizes if peer.reads_originals else split.stored_sizes
    index = np.linspace(0, split.num_samples - 1, NUM_COMPARED).astype(np.int64)
    plan = training_plan(index, sizes, augmentation=AUGMENTATION, seed=0, epoch=0)
    here, originals = [], []
    for sample, box in zip(index.tolist(), plan.boxes, strict=True):
        pixels = peer.cut(sample, box).astype(int)
        content = split.read_original(sample)
        original = cut(content, sizes[sample], box, np.array([SIZE, SIZE]), False, FILTER)
        stored = original if peer.reads_originals else cut_stored(split, sample, box)
        here.append(np.abs(pixels - stored))
        originals.append(np.abs(pixels - original).mean())
    return {"mean": np.mean(here), "max": float(np.max(here)), "originals": np.mean(originals)}


def cut_stored(split: Split, sample: int, box: np.ndarray) -> np.ndarray:
    """The crop of a stored image, decoded and resized by Pillow."""
    payload, (height, width) = split.beton.payload(sample), split.stored_sizes[sample]
    if split.beton.modes[sample] == JPEG:
        image = Image.open(io.BytesIO(payload.tobytes())).convert("RGB")
    else:
        image = Image.fromarray(payload.reshape(height, width, 3))
    top, left, box_height, box_width = (int(value) for value in box)
    return np.asarray(resize(image.crop((left, top, left + box_width, top + box_height)), SIZE, SIZE, FILTER))


if __name__ == "__main__":
    main()

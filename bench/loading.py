"""Benchmark of the loaders: speed, memory and pixel accuracy of ours and of those that people use today.

    python bench/loading.py ROOT... [--workers 2] [--rounds 5] [--starts 3] [--images 4000] [--peers NAME...]

ROOT is a folder prepared by prepare.py; the benchmark prints one table for each. The loaders ("peers") and their
settings are in peers.py. NVIDIA DALI, tf.data and SPDL (other_peers.py) read the original files. They run in
--peers-venv, which requirements.txt fills; those that are missing are named at the end, with the command.

Start and memory: each peer runs alone in fresh processes. Measured are the time from the start of the process to its
first batch, and the peak memory of an epoch (resident memory of the process plus private memory of its workers).
Speed: all peers are kept ready, and rounds alternate between them. Printed are medians by wall-clock time and by CPU
time, which other jobs on the machine affect less, and our images per second over the peer's in the same round.
Pixels: 200 images at our crop boxes, compared with Pillow on the bytes that the peer reads (mean and largest
difference, in gray levels) and with Pillow on the original files (mean; includes the loss by the store).
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from other_peers import OTHER_PEERS
from peers import AUGMENTATION, FILTER, PEERS, SIZE
from PIL import Image
from serving import Process, serve

from tencrop.data.augmentation.plan import training_plan
from tencrop.data.loading.reference import cut, resize
from tencrop.data.store.beton import JPEG
from tencrop.data.store.manifest import Split, open_split

NUM_COMPARED = 200
OURS, FLOOR = "tencrop", "full decode"
PEERS_VENV = Path(__file__).parent.parent / ".venv-peers"
HOW_TO_INSTALL = "python3 -m venv {0} && {0}/bin/pip install -r bench/requirements.txt"
COLUMNS = (
    ("img/s", "clock", "8.0f"),
    ("ours /", "least_ratio", "7.2f"),
    ("median", "ratio", "7.2f"),
    ("most", "most_ratio", "6.2f"),
    ("img/cpu s", "processor", "9.0f"),
    ("ours /", "processor_ratio", "7.2f"),
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
    parser.add_argument("--peers", nargs="+", choices=[*PEERS, *OTHER_PEERS], default=[*PEERS, *OTHER_PEERS])
    parser.add_argument("--peers-venv", type=Path, default=PEERS_VENV, help="virtual environment of other_peers.py")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # run as the measured process of this peer
    options = parser.parse_args()
    if options.serve:
        options.root = options.roots[0]
        serve(PEERS[options.serve](options))
        return
    missing = {name: reason for name in options.peers if (reason := why_missing(name, options))}
    options.peers = [name for name in options.peers if name not in missing]
    for root in options.roots:
        options.root = root
        with original_files(options) as options.folder:
            print_table(measure(options), options)
    for name, reason in missing.items():
        print(f"not measured: {name} ({reason}); install it: {HOW_TO_INSTALL.format(options.peers_venv)}")


def why_missing(name: str, options: argparse.Namespace) -> str:
    """Why a loader of other_peers.py cannot run here; empty if it can."""
    if name not in OTHER_PEERS:
        return ""
    python = options.peers_venv / "bin" / "python"
    if not python.exists():
        return f"{python} does not exist"
    check = [python, Path(__file__).with_name("other_peers.py"), name, "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


@contextmanager
def original_files(options: argparse.Namespace) -> Iterator[str]:
    """A folder with the original files of the training split, named by index, if a loader of others reads them."""
    with tempfile.TemporaryDirectory(prefix="bench-loading-") as folder:
        split = open_split(options.root, "train")
        for index in range(split.num_samples if set(options.peers) & set(OTHER_PEERS) else 0):
            (Path(folder) / f"{index:07d}.jpg").write_bytes(split.read_original(index))
        yield folder


def start(name: str, options: argparse.Namespace) -> Process:
    settings = ["--workers", str(options.workers), "--images", str(options.images)]
    if name in OTHER_PEERS:
        program = [options.peers_venv / "bin" / "python", Path(__file__).with_name("other_peers.py")]
        return Process([*map(str, program), name, options.folder, *settings])
    return Process([sys.executable, __file__, options.root, "--serve", name, *settings])


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measurements by peer."""
    results = {name: measure_alone(name, options) for name in options.peers}
    processes = {name: start(name, options) for name in options.peers}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.peers}
    # Alternate between the peers, so that a slow minute of the machine affects all of them.
    for number in range(1, options.rounds + 1):
        for name, process in processes.items():
            rounds[name].append(process.rates(number))
    for process in processes.values():
        process.close()
    rates = {name: np.array(pairs) for name, pairs in rounds.items()}  # [rounds, (wall clock, CPU time)]
    for name, result in results.items():
        result["clock"], result["processor"] = np.median(rates[name], axis=0)
        if OURS in rates:
            clock, processor = (rates[OURS] / rates[name]).T
            result["least_ratio"], result["ratio"], result["most_ratio"] = np.quantile(clock, [0, 0.5, 1])
            result["processor_ratio"] = np.median(processor)
    return results


def measure_alone(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time to the first batch, peak memory and pixel differences of a peer, with no other running."""
    firsts, facts = [], {}
    for number in range(options.starts):
        process = start(name, options)
        firsts.append(process.first_batch_s)
        if number == options.starts - 1:
            facts = {"memory": process.most_memory, **compare(name, process, open_split(options.root, "train"))}
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
    others = {name: result["ratio"] for name, result in results.items() if name not in (OURS, FLOOR)}
    if OURS in results and others:
        best = min(others, key=lambda name: others[name])
        print(f"ours / the best other loader ({best}): {others[best]:.2f}")


def compare(name: str, process: Process, split: Split) -> dict[str, float]:
    """Differences of the peer's crops from Pillow's, on the bytes that it reads and on the original files."""
    if name == FLOOR:  # it crops nothing
        return {}
    reads_originals = name in OTHER_PEERS or PEERS[name].reads_originals
    sizes = split.original_sizes if reads_originals else split.stored_sizes
    index = np.linspace(0, split.num_samples - 1, NUM_COMPARED).astype(np.int64)
    plan = training_plan(index, sizes, augmentation=AUGMENTATION, seed=0, epoch=0)
    here, originals = [], []
    crops = process.cut(index.tolist(), plan.boxes).astype(int)
    for sample, box, pixels in zip(index.tolist(), plan.boxes, crops, strict=True):
        content = split.read_original(sample)
        original = cut(content, sizes[sample], box, np.array([SIZE, SIZE]), False, FILTER)
        stored = original if reads_originals else cut_stored(split, sample, box)
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

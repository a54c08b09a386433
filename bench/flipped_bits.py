"""Whether a file that was damaged is ever believed: flips single bits of a checkpoint, a score file and a result.

    python bench/flipped_bits.py [--checkpoint 600] [--scores 1500] [--result 300] [--seed 0]

Trains LeNet-5 on the digits for 60 steps in a temporary folder, evaluates it, and flips that many random bits, one at
a time, in copies of the three files. Each copy is read as train.py, evaluate.py and report.py read it, and is counted:

    refused      one sentence, exit code 2 (train.py goes on from previous.ckpt where there is one)
    recomputed   evaluate.py takes the scores for none and computes them again
    identical    what was read is what was written: the bit stands where nothing is read from
    silent       other content was read without a word
    traceback    an exception that is none of the user's

Exit code 1 where a copy was silent or a traceback. 2 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tencrop.config import UserError
from tencrop.evaluation.predictions import Scores, load_scores, saved_scores
from tencrop.evaluation.results import load_result
from tencrop.models.weights import load_weights
from tencrop.training.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[1]
OUTCOMES = ("refused", "recomputed", "identical", "silent", "traceback")
RECIPE = ("experiment=lenet5_digits", "training.max_steps=60", "checkpoint_every_steps=30", "tracker=none")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=int, default=600, metavar="N")
    parser.add_argument("--scores", type=int, default=1500, metavar="N")
    parser.add_argument("--result", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tencrop-") as folder:
        run = train_and_evaluate(Path(folder))
        last, scores = run / "checkpoints" / "last.ckpt", run / "predictions" / "center.safetensors"
        result = scores.with_name("center.result.json")
        counts = {
            last.name: flipped(last, read_as_training, options.checkpoint, seed=options.seed),
            scores.name: flipped(scores, reader_of_evaluation(scores), options.scores, seed=options.seed),
            result.name: flipped(result, load_result, options.result, seed=options.seed),
        }
    print(f"{'file':20}{'flips':>8}" + "".join(f"{outcome:>12}" for outcome in OUTCOMES))
    for name, found in counts.items():
        print(f"{name:20}{found.total():8}" + "".join(f"{found[outcome]:12}" for outcome in OUTCOMES))
    return int(any(found["silent"] or found["traceback"] for found in counts.values()))


def train_and_evaluate(folder: Path) -> Path:
    """The folder of a short run, below `folder`."""
    data = [f"data.root={folder}/digits"]
    commands = [
        ["prepare.py", "data=digits", *data],
        ["train.py", *RECIPE, *data, f"runs={folder}/runs", "hardware=cpu"],
    ]
    for script, *words in commands:
        subprocess.run([sys.executable, str(ROOT / script), *words], check=True, stdout=subprocess.DEVNULL)
    (manifest,) = (folder / "runs").rglob("manifest.json")
    return manifest.parent


def flipped(path: Path, read: Callable[[Path], Any], num_flips: int, *, seed: int) -> Counter[str]:
    """How many of `num_flips` copies of a file, each with another random bit flipped, are read how (OUTCOMES).

    The copies are written in the file's place, and at the end it is as it was.
    """
    written, expected = path.read_bytes(), read(path)
    counts: Counter[str] = Counter()
    for bit in random.Random(seed).sample(range(8 * len(written)), num_flips):
        damaged = bytearray(written)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        counts[_outcome(path, read, expected)] += 1
    path.write_bytes(written)
    assert is_same(read(path), expected)
    return counts


def _outcome(path: Path, read: Callable[[Path], Any], expected: Any) -> str:
    try:
        content = read(path)
    except UserError:
        return "refused"
    except Exception:
        return "traceback"
    if content is None:
        return "recomputed"
    return "identical" if is_same(content, expected) else "silent"


def read_as_training(path: Path) -> list[Any]:
    """The checkpoint as train.py goes on from it, and its weights as evaluate.py and report.py read them."""
    readings: list[Any] = []
    refusals = []
    for read in (read_checkpoint, load_weights):
        try:
            readings.append(read(path))
        except UserError as error:
            refusals.append(error)
    assert not refusals or not readings, "one of two readers believes the file"
    if refusals:
        raise refusals[0]
    return readings


def reader_of_evaluation(path: Path) -> Callable[[Path], Scores | None]:
    """How evaluate.py looks for scores that it saved; `path`: of a file as it was written, which says what it seeks."""
    written = load_scores(path)
    return lambda path: saved_scores(path, written.metadata, labels=written.labels.numpy())


def is_same(one: Any, other: Any) -> bool:
    """Whether two readings are equal, tensors in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Scores):
        return is_same((one.metadata, one.tensors()), (other.metadata, other.tensors()))
    if isinstance(one, torch.Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(is_same(*pair) for pair in zip(one, other, strict=True))
    return one == other


if __name__ == "__main__":
    sys.exit(main())

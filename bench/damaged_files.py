"""Whether a damaged file is ever believed: damages every kind of file that tencrop reads, and reads it.

    python bench/damaged_files.py [--count 1000] [--seed 0]

Trains LeNet-5 on the digits for 60 steps in a temporary folder, evaluates it, and damages copies of its files, one at a
time: flipped bits, cut, blocks exchanged or overwritten, another kind's file in its place, and files with code
(bench/damages.py). Each is read as train.py, evaluate.py, report.py or submit.py read it (bench/file_kinds.py):

    refused      one sentence, exit code 2
    previous     train.py goes on from previous.ckpt
    recomputed   evaluate.py takes the scores for none and computes them again
    identical    what was read is what was written: the damage is where nothing is read from
    unchecked    other content was read from a file that has no checksum: people write it, or its format has none
    silent       other content was read without a word
    executed     code in the file was run
    traceback    an exception that is no UserError

Exit code 1 if a copy was silent, executed or a traceback.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damages import damaged
from file_kinds import Kind, kinds, train_and_evaluate

from tencrop.config import UserError
from tencrop.evaluation.predictions import Scores
from tencrop.text_tables import aligned

OUTCOMES = ("refused", "previous", "recomputed", "identical", "unchecked", "silent", "executed", "traceback")
WRONG = ("silent", "executed", "traceback")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="damaged files in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tencrop-") as folder:
        found = read_all(kinds(train_and_evaluate(Path(folder))), options.count, seed=options.seed)
    print("\n".join(table(found)))
    return int(any(counts[outcome] for counts in found.values() for outcome in WRONG))


def read_all(planned: list[Kind], count: int, *, seed: int) -> dict[str, Counter[str]]:
    """The outcomes of `count` damaged files by kind, spread evenly over the kinds."""
    found = {}
    # Not those without a checksum: plain weights in place of exported ones are no damage, but what a user chose.
    others = [kind.path for kind in planned if kind.has_checksum]
    for number, kind in enumerate(planned):
        num_files = count // len(planned) + (number < count % len(planned))
        found[kind.name] = read_damaged(kind, num_files, others=others, seed=seed)
        print(f"{kind.name}: {num_files} files", file=sys.stderr, flush=True)
    return found


def read_damaged(kind: Kind, num_files: int, *, others: list[Path], seed: int) -> Counter[str]:
    """How `num_files` damaged copies of a file are read (OUTCOMES); each wrong one is printed to stderr.

    The copies are written in the file's place, and at the end it is as it was. others: files of other kinds.
    """
    written, expected = kind.path.read_bytes(), kind.read(kind.path)
    marker = kind.path.with_name("executed")
    foreign = [path.read_bytes() for path in others if path.read_bytes() != written]
    rng = random.Random(f"{seed} {kind.name}")
    counts: Counter[str] = Counter()
    for damage, content in damaged(written, foreign, marker, num_files, rng):
        # A new file: the reader may still have mapped the old one, and last.ckpt and previous.ckpt may be links.
        kind.path.unlink()
        kind.path.write_bytes(content)
        outcome, reason = _outcome(kind, expected)
        if marker.exists():
            outcome = "executed"
            marker.rmdir()
        if outcome in WRONG:
            print(f"{kind.name}, {damage}: {outcome} {reason}", file=sys.stderr)
        counts[outcome] += 1
    kind.path.unlink()
    kind.path.write_bytes(written)
    assert is_same(kind.read(kind.path), expected)
    return counts


def _outcome(kind: Kind, expected: Any) -> tuple[str, str]:
    try:
        content = kind.read(kind.path)
    except UserError:
        return "refused", ""
    except Exception as error:
        return "traceback", repr(error)
    if content is None:
        return "recomputed", ""
    if is_same(content, expected):
        return "identical", ""
    if kind.previous is not None and is_same(content, kind.previous):
        return "previous", ""
    return ("unchecked" if not kind.has_checksum else "silent"), ""


def is_same(one: Any, other: Any) -> bool:
    """Whether two readings are equal, tensors and arrays in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Scores):
        return is_same((one.metadata, one.tensors()), (other.metadata, other.tensors()))
    if isinstance(one, torch.Tensor):
        return is_same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(is_same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other) or (one != one and other != other)  # a NaN equals itself here


def table(found: dict[str, Counter[str]]) -> list[str]:
    """The lines of the table: one for each kind of file, and the total."""
    total: Counter[str] = sum(found.values(), Counter())
    lines = [[name, *_numbers(counts)] for name, counts in {**found, "all": total}.items()]
    return aligned([["file", "files", *OUTCOMES], *lines], left=(0,))


def _numbers(counts: Counter[str]) -> Iterator[str]:
    return map(str, (counts.total(), *(counts[outcome] for outcome in OUTCOMES)))


if __name__ == "__main__":
    sys.exit(main())

"""The subset of the evaluation split that `data.subset_of_val` lists, such as the 48,238 images of Inception v3.

Training does not use it: it validates on the whole split. Imports no torch, so that a wrong list is refused at once.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from tencrop.config import Config, UserError
from tencrop.data.sampling.rng import Index
from tencrop.data.store.manifest import Split, source_fingerprint


def evaluated_index(config: Config, split: Split) -> Index:
    """The samples that are evaluated, int64 [N], ascending: all of the split, or those in `data.subset_of_val`.

    The list has one file name a line, with or without its class folder. Raises UserError if it cannot be read, or if a
    name is listed twice, is not in the split, or is that of several images.
    """
    path = config.data.subset_of_val
    if path is None:
        return np.arange(split.num_samples, dtype=np.int64)
    found: dict[str, list[int]] = {}
    for sample, name in enumerate(map(os.fsdecode, split.files["name"])):
        found.setdefault(name, []).append(sample)
        if "/" in name:
            found.setdefault(name.rpartition("/")[2], []).append(sample)
    chosen = []
    for name in _names(Path(path)):
        if len(indices := found.get(name, [])) != 1:
            what = (
                "several images have this name; give it as CLASS/FILE" if indices else "the val split has no such image"
            )
            raise UserError(f"data.subset_of_val={path}: {name}: {what}")
        chosen += indices
    index, counts = np.unique(np.array(chosen, np.int64), return_counts=True)
    if counts.max() > 1:
        twice = split.names(int(index[counts.argmax()]))
        raise UserError(f"data.subset_of_val={path}: {twice} is listed twice; list every image once")
    return index


def evaluated_fingerprint(split: Split, index: Index) -> str:
    """The hash of the evaluated images and labels: that of the manifest if they are the whole split."""
    return split.source_fingerprint if len(index) == split.num_samples else source_fingerprint(split.files[index])


def subset_hash(config: Config) -> str | None:
    """8 hexadecimal digits that tell lists apart in file names; None without a list."""
    if config.data.subset_of_val is None:
        return None
    names = sorted(_names(Path(config.data.subset_of_val)))
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"data.subset_of_val={path}: there is no such file; give a list of file names, one a line")
    lines = (line.strip() for line in path.read_bytes().splitlines())
    if not (names := [os.fsdecode(line) for line in lines if line]):
        raise UserError(f"data.subset_of_val={path}: is empty; give a list of file names, one a line")
    return names

"""The subset of the evaluation split that `data.subset_of_val` lists, such as the 48,238 images of Inception v3.

Validation during training uses the whole split. Imports no torch, so that an invalid list is refused at once.
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
    """Indices of the samples to evaluate, int64 [N], ascending: the whole split, or those in `data.subset_of_val`.

    The list has one file name per line, with or without its class folder. Raises UserError if the list is missing or
    empty, or if a name occurs twice, is not in the split, or belongs to several images.
    """
    path = config.data.subset_of_val
    if path is None:
        return np.arange(split.num_samples, dtype=np.int64)
    found: dict[str, list[int]] = {}
    for sample, name in enumerate(map(os.fsdecode, split.files["name"])):
        # Two keys a sample: lists in the wild have CLASS/FILE or FILE alone.
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
    """Hash of the evaluated images and labels; for the whole split, the one in the manifest."""
    return split.source_fingerprint if len(index) == split.num_samples else source_fingerprint(split.files[index])


def subset_hash(index: Index) -> str:
    """First 8 hexadecimal digits of the SHA-256 of the indices, int64 [N], for file names."""
    # Not of the list: it may have the same images in another order, and with or without their folders.
    return hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()[:8]


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"data.subset_of_val={path}: there is no such file; give a list of file names, one a line")
    lines = (line.strip() for line in path.read_bytes().splitlines())
    if not (names := [os.fsdecode(line) for line in lines if line]):
        raise UserError(f"data.subset_of_val={path}: is empty; give a list of file names, one a line")
    return names

"""Reads the development kit of ILSVRC2012: classes, training counts, ground truth of the validation images.

It may be ILSVRC2012_devkit_t12.tar.gz as published, or the folder that this extracts to.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tencrop.config import UserError
from tencrop.data.sources.archives import small_files

FOLDER = "ILSVRC2012_devkit_t12"
ARCHIVE = f"{FOLDER}.tar.gz"
META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
SIMULATED = "SIMULATED"  # a file that marks the archives of simulate.py


@dataclass(frozen=True)
class Devkit:
    wnids: dict[int, str]  # by ILSVRC2012_ID, which counts from 1 and is not the sorted order
    num_train_images: dict[str, int]  # by wnid
    ground_truth: list[int]  # ILSVRC2012_ID of the validation images 1, 2, ...
    simulated: bool


def find_devkit(source: Path) -> Path | None:
    """The devkit's archive or folder within the user's folder."""
    return next((path for path in (source / ARCHIVE, source / FOLDER) if path.exists()), None)


def read_devkit(path: Path) -> Devkit:
    """Read the archive or the folder; UserError if it is not the devkit of ILSVRC2012."""
    wanted = (META, GROUND_TRUTH, SIMULATED)  # the rest of the kit is MATLAB code and documentation
    if path.is_dir():
        files = {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}
    else:
        found = small_files(path, wanted=lambda name: name.removeprefix(f"{FOLDER}/") in wanted)
        files = {name.removeprefix(f"{FOLDER}/"): content for name, content in found.items()}
    for name in (META, GROUND_TRUTH):
        if name not in files:
            raise UserError(f"{path}: has no {name}; download {ARCHIVE}")
    wnids, num_train_images = _read_meta(path, files[META])
    try:
        ground_truth = [int(line) for line in files[GROUND_TRUTH].split()]
    except ValueError as error:
        raise UserError(f"{path}, {GROUND_TRUTH}: not one number a line ({error}); download {ARCHIVE} again") from error
    if unknown := set(ground_truth) - set(wnids):
        raise UserError(f"{path}, {GROUND_TRUTH}: class {min(unknown)} is not in {META}; download {ARCHIVE} again")
    return Devkit(wnids, num_train_images, ground_truth, SIMULATED in files)


def _read_meta(path: Path, content: bytes) -> tuple[dict[int, str], dict[str, int]]:
    """The leaves of `synsets`: inner nodes of the hierarchy (num_children > 0) are not classes."""
    from scipy.io import loadmat  # imported late: takes half a second. It executes no code from the file.

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"])
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        num_train_images = {str(synset["WNID"]): int(synset["num_train_images"]) for synset in leaves}
    except Exception as error:  # a damaged file may raise anything in scipy
        raise UserError(
            f"{path}, {META}: not the table of synsets of ILSVRC2012 ({error}); download {ARCHIVE} again"
        ) from error
    if len(num_train_images) != len(leaves) or len(wnids) != len(leaves):
        raise UserError(f"{path}, {META}: two classes have the same number or the same WNID; download {ARCHIVE} again")
    return wnids, num_train_images

"""Finds the score files that a user names, reads them, and finds the names of their images and classes.

Imports no torch: whoever compares two finished runs should not wait for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tencrop.config import UserError
from tencrop.config.run_config import is_run_folder, read_config
from tencrop.data.sources.class_names import label_names
from tencrop.data.store.manifest import Split, open_split
from tencrop.evaluation.score_files import read_scores
from tencrop.printable import printable
from tencrop.records.manifest import RunManifest
from tencrop.records.run_folder import read_run_manifest

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class SavedScores:
    """The scores of N images over K classes in one file, averaged over views as `average` names."""

    path: Path
    average: str  # softmax | logits
    labels: np.ndarray  # int64 [N]
    scores: np.ndarray  # float32 [N, K]
    ranks: np.ndarray  # int32 [N], of the labels among the scores
    metadata: dict[str, str]
    data_root: str | None  # prepared data, for names; None: the run's
    samples: np.ndarray | None = None  # int64 [N], sample indices of a subset; None: scores of the whole split

    @property
    def name(self) -> str:
        """The file's name without suffix: the protocol, and what else differs from the recipe."""
        return self.path.stem

    @cached_property
    def run_folder(self) -> Path | None:
        """The run folder that the file is in; None for evaluations outside run folders."""
        folder = self.path.absolute().parent
        return folder.parent if folder.name == "predictions" and is_run_folder(folder.parent) else None

    @cached_property
    def manifest(self) -> RunManifest | None:
        """The run's manifest; None without a run folder, or if it cannot be read: then only names are missing."""
        try:
            return None if self.run_folder is None else read_run_manifest(self.run_folder)
        except UserError:
            return None

    @cached_property
    def classes(self) -> list[str]:
        """A readable name for each class; "class 3" if neither the run folder nor `data_root` tells."""
        num_classes = self.scores.shape[1]
        data = None if self.manifest is None else self.manifest["data"]
        # other data may have been evaluated into the run's folder
        # From the run's manifest, which has the names even where the prepared data is on another machine.
        if data is not None and data["splits"]["val"]["source_fingerprint"] == self._split_fingerprint:
            names = data["classes"]
        else:
            names = [] if self._split is None else self._split.manifest["classes"]
        return label_names(names) if len(names) == num_classes else [f"class {label}" for label in range(num_classes)]

    def image_name(self, index: int) -> str:
        """Class folder and file name; "image 17" where the prepared data is not at hand."""
        return f"image {index}" if self._split is None else printable(self._split.names(self._sample(index)))

    def image_file(self, index: int) -> bytes:
        """The bytes of an image file. Raises UserError where the prepared data or the file is not at hand."""
        if self._split is None:
            raise UserError("their prepared data are not on this machine; data_root=DIR names them")
        return self._split.read_original(self._sample(index))

    @property
    def image_names(self) -> list[str] | None:
        """Class folder and file name of each image; None where the prepared data is not at hand."""
        if self._split is None:
            return None
        names = self._split.files["name"]
        return [os.fsdecode(name) for name in (names if self.samples is None else names[self.samples])]

    @property
    def class_folders(self) -> list[str] | None:
        """The folder of each class by label, such as its WNID; None where the prepared data is not at hand."""
        return None if self._split is None else self._split.manifest["classes"]

    def check_samples(self) -> None:
        """Raises UserError for scores of a subset that earlier code wrote without the subset's sample indices."""
        if "subset" in self.metadata and self.samples is None:
            raise UserError(f"{self.path}: does not say which images of the split it covers; run evaluate.py again")

    @cached_property
    def _split(self) -> Split | None:
        """The images that were evaluated, if their prepared folder is on this machine."""
        if self.data_root is not None:
            split = open_split(self.data_root, "val")
            self.check_samples()
            if not self._is_of(split):
                raise UserError(
                    f"data_root={self.data_root}: holds other images than those of {self.path}; leave it out"
                )
            return split
        if self.run_folder is None:
            return None
        try:
            data = read_config(self.run_folder)["data"]
            split = open_split(data["root"], "val", source=data["source"], data=data["name"])
        except UserError:  # the data may be on another machine
            return None
        return split if self._is_of(split) else None

    def _is_of(self, split: Split) -> bool:
        return split.source_fingerprint == self._split_fingerprint

    @property
    def _split_fingerprint(self) -> str | None:
        """Of the whole split; `source_fingerprint` is that of the images that were evaluated."""
        return self.metadata.get("split_fingerprint", self.metadata.get("source_fingerprint"))

    def _sample(self, index: int) -> int:
        return index if self.samples is None else int(self.samples[index])


def score_files(given: str, *, key: str) -> list[Path]:
    """The score files that a user means by a file, a run folder, or a folder of evaluate.py; sorted by name.

    key: the key that was typed, for messages. Raises UserError if there are none.
    """
    path = Path(given)
    if path.is_file():
        if path.suffix != SUFFIX:
            raise UserError(f"{key}={given}: is no score file; evaluate.py writes them as PROTOCOL{SUFFIX}")
        return [path]
    if not path.is_dir():
        raise UserError(f"{key}={given}: there is no such file or folder; name a run folder or a score file")
    folder = path / "predictions" if is_run_folder(path) else path
    files = sorted(folder.glob(f"[!.]*{SUFFIX}"))  # macOS writes ._NAME beside NAME on some volumes
    if files:
        return files
    if is_run_folder(path):
        last = path / "checkpoints" / "last.ckpt"
        raise UserError(f"{key}={given}: the run has no scores; evaluate it: evaluate.py checkpoint={last}")
    within = sorted(file.parent for file in path.rglob("manifest.json") if is_run_folder(file.parent))
    raise UserError(
        f"{key}={given}: is no run folder and holds no score file (*{SUFFIX})"
        + (f"; it holds runs, so name one of them, such as {key}={within[0]}" if within else "")
    )


def read_saved(path: Path, average: str, *, data_root: str | None = None) -> SavedScores:
    """Read and verify a score file. Raises UserError if it is missing, damaged or not a score file."""
    arrays, metadata = read_scores(path)
    ranks, samples = arrays[f"{average}_ranks"], arrays.get("samples")
    return SavedScores(path, average, arrays["labels"], arrays[average], ranks, metadata, data_root, samples)

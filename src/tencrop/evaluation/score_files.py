"""Reads score files as NumPy arrays, completely verified, and without torch, whose import takes seconds.

predictions.py writes the files, and turns what is read here into tensors. report.py reads them directly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tencrop.config import UserError
from tencrop.evaluation.errors import NOT_FINITE

FORMAT = "tencrop scores 2"
RANKED_FORMATS = ("tencrop scores 1", FORMAT)  # format 1 had the same ranks, with float16 scores
AVERAGES = ("softmax", "logits")
OPTIONAL = ("view_logits", "samples")
ARRAYS = ("index", "labels", *AVERAGES, *(f"{average}_ranks" for average in AVERAGES))
# Exceptions that the bytes of a broken file can cause. For a file that may not be read, safe_open raises
# FileNotFoundError without an errno.
BROKEN = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
Arrays = dict[str, np.ndarray]


def read_scores(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays of a score file by name, as in predictions.Scores, and its metadata.

    index, labels: int64 [N]; softmax, logits: float32 [N, K]; softmax_ranks, logits_ranks: int32 [N]; perhaps
    view_logits: float16 [N, V, K], and samples: int64 [N]. Reads the whole file, compares its digest and counts the
    ranks again (1.2 s of processor time for 50,000 images in 1,000 classes). Raises UserError if it is missing,
    damaged, of an earlier format or not a score file.
    """
    with _open_scores(path, (FORMAT,)) as (file, metadata):
        digest = metadata.pop("sha256", None)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is not iterable
        assert digest == scores_digest(arrays, metadata), "its content is not what was written (SHA-256)"
        _check(arrays)
    return arrays, metadata


def read_ranks(path: Path, average: str) -> tuple[np.ndarray, dict[str, str]]:
    """The labels' ranks int32 [N] for an average (softmax or logits), and the metadata; also from earlier formats.

    Reads a few bytes for each image, so that a report can read many files. Only read_scores verifies the digest.
    """
    with _open_scores(path, RANKED_FORMATS) as (file, metadata):
        names = (f"{average}_ranks", "index", "labels")
        ranks, index, labels = (file.get_tensor(name) for name in names)
        num_classes = file.get_slice(average).get_shape()[1]
        _check_images(index, labels, {names[0]: ranks}, num_classes)
    metadata.pop("sha256", None)
    return ranks, metadata


def is_score_file(path: Path) -> bool:
    """False for a .safetensors file of something else, such as weights; True for score files, also broken ones."""
    try:
        with safe_open(path, framework="np") as file:
            return "scores" in (file.metadata() or {})
    except BROKEN:
        return True


def read_average(path: Path, average: str) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32 [N, K], labels int64 [N]) of an average (softmax or logits), without verifying the digest."""
    with _open_scores(path, (FORMAT,)) as (file, _):
        return file.get_tensor(average), file.get_tensor("labels")


def scores_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 (hexadecimal) over all arrays and the metadata of a score file."""
    # Equal to checkpoint_files.weights_sha256 of the same tensors, as files written before have it: hence "torch."
    content = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        content.update(f"{name} torch.{array.dtype} {list(array.shape)}\n".encode())
        content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    facts = json.dumps(metadata, sort_keys=True)
    return hashlib.sha256(f"{content.hexdigest()} {facts}".encode()).hexdigest()


def count_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """errors.label_ranks for NumPy arrays: int32 [N], from float [N, K] and int64 [N]."""
    # Only checks the ranks of a file, which label_ranks counted. A test compares the two on ties and NaN.
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    ranks = (scores >= own).sum(1, dtype=np.int32) - np.int32(1)
    return np.where(np.isfinite(scores).all(1), ranks, np.int32(NOT_FINITE))


def ranks_within(scores: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The labels' ranks among some classes only, int32 [N].

    scores: float [N, K]; labels: int64 [N], all in `classes`; classes: int64 [C], ascending.
    """
    positions = np.searchsorted(classes, labels)
    assert np.array_equal(classes[positions], labels), "a label is none of the classes"
    return count_ranks(scores[:, classes], positions)


@contextmanager
def _open_scores(path: Path, formats: tuple[str, ...]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a score file; yields it with its metadata. Exceptions that a broken file causes become a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such score file; evaluate.py writes it")
    try:
        with safe_open(path, framework="np") as file:
            # Keys that this code does not know stay in the metadata, and so in the digest.
            metadata = json.loads((file.metadata() or {}).get("scores", "{}"))
            if metadata.pop("format", None) not in formats:
                raise UserError(f"{path}: is no score file of this version ({FORMAT}); run evaluate.py again")
            yield file, metadata
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{path}: is a broken score file ({error}); remove it and run evaluate.py again") from error


def _check(arrays: Arrays) -> None:
    """Check that the content is consistent. The digest only shows that nothing changed since the file was written."""
    wrong = (set(ARRAYS) ^ arrays.keys()) - {*OPTIONAL}
    assert not wrong, f"{', '.join(sorted(wrong))}: missing, or no array of a score file"
    softmax, logits = arrays["softmax"], arrays["logits"]
    assert logits.ndim == 2 and logits.shape == softmax.shape, "logits and softmax differ in shape"
    assert len(softmax) == len(arrays["index"]), "scores and images differ in number"
    assert logits.dtype == softmax.dtype == np.float32, "the scores are not float32"
    ranks = {name: arrays[name] for name in ("softmax_ranks", "logits_ranks")}
    _check_images(arrays["index"], arrays["labels"], ranks, softmax.shape[1])
    if (samples := arrays.get("samples")) is not None:
        assert samples.shape == arrays["index"].shape, "samples is not one number per image"
        assert samples[0] >= 0 and (np.diff(samples) > 0).all(), "samples are not ascending"
    # Also catches a change of the top-k rule in the code since the file was written.
    for average in AVERAGES:
        counted = count_ranks(arrays[average], arrays["labels"])
        assert np.array_equal(counted, ranks[f"{average}_ranks"]), f"its {average} ranks are not those of its scores"


def _check_images(index: np.ndarray, labels: np.ndarray, ranks: Arrays, num_classes: int) -> None:
    num_images = len(index)
    for name, values in {"labels": labels, **ranks}.items():
        assert values.shape == (num_images,), f"{name} is not one number per image"
    assert num_images and np.array_equal(index, np.arange(num_images)), "an image is missing, or is there twice"
    assert 0 <= int(labels.min()) <= int(labels.max()) < num_classes, "labels out of range"
    for name, values in ranks.items():
        assert NOT_FINITE <= int(values.min()) <= int(values.max()) < num_classes, f"{name} out of range"

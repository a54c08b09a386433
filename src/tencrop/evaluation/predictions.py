"""Score files: the class scores of every image, saved once and read by tables, ensembles and figures.

A score file is .safetensors, which is read without executing code. It has the means over views of softmax and logits
(papers use either, and one cannot be computed from the other), index, label and rank for each image, and metadata on
weights, data and protocol. Scores are float32, from which the ranks were counted, so that every reader counts the same
errors. That takes 400 MB for 50,000 images in 1,000 classes; float16 would take half but make ties. A digest over the
whole content is verified on every read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tencrop.config import Protocol, UserError
from tencrop.evaluation.errors import NOT_FINITE, label_ranks
from tencrop.files import atomic_write
from tencrop.models.checkpoint_files import weights_sha256

FORMAT = "tencrop scores 2"
RANKED_FORMATS = ("tencrop scores 1", FORMAT)  # format 1 had the same ranks, with float16 scores
AVERAGES = ("softmax", "logits")
# Exceptions that the bytes of a broken file can cause. RuntimeError is torch's, for shapes and dtypes. For a file that
# may not be read, safe_open raises FileNotFoundError without an errno.
BROKEN = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Scores:
    """Scores of N images over K classes; `metadata` identifies weights, data, protocol and code."""

    index: Tensor  # int64 [N], ascending
    labels: Tensor  # int64 [N]
    softmax: Tensor  # float32 [N, K], mean over the views
    logits: Tensor  # float32 [N, K], mean over the views
    softmax_ranks: Tensor  # int32 [N], label_ranks of softmax
    logits_ranks: Tensor  # int32 [N], label_ranks of logits
    metadata: dict[str, str]
    view_logits: Tensor | None = None  # float16 [N, V, K], on request

    def ranks(self, average: str) -> Tensor:
        """Ranks of the labels, int32 [N], among the averaged softmax or logits; average: "softmax" or "logits"."""
        return {"softmax": self.softmax_ranks, "logits": self.logits_ranks}[average]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, without view_logits if there are none."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "metadata"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def from_averages(
    index: Tensor,
    labels: Tensor,
    softmax: Tensor,
    logits: Tensor,
    metadata: dict[str, str],
    view_logits: Tensor | None = None,
) -> Scores:
    """Scores from float32 averages [N, K], with the ranks counted from them."""
    assert softmax.dtype == logits.dtype == torch.float32, (softmax.dtype, logits.dtype)
    return Scores(
        index=index,
        labels=labels,
        softmax=softmax,
        logits=logits,
        softmax_ranks=label_ranks(softmax, labels),
        logits_ranks=label_ranks(logits, labels),
        metadata=metadata,
        view_logits=None if view_logits is None else _to_float16(view_logits),
    )


def _to_float16(scores: Tensor) -> Tensor:
    """Logits of single views as float16, as no error is counted from them: ten views of 50,000 images take 1 GB."""
    return scores.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


def save_scores(path: Path, scores: Scores) -> None:
    """Write a score file atomically: to a temporary name in its folder, then fsync and rename."""
    # safetensors refuses tensors that are not contiguous.
    tensors = {name: tensor.cpu().contiguous() for name, tensor in scores.tensors().items()}
    facts = {"format": FORMAT, "sha256": _digest(tensors, scores.metadata), **scores.metadata}
    # One JSON entry: safetensors writes several entries in random order, and equal scores should give equal files.
    metadata = {"scores": json.dumps(facts, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save(tensors, metadata))


def load_scores(path: Path) -> Scores:
    """The scores of images 0 to N-1 in a file, completely verified.

    Reads the whole file, compares its digest and counts the ranks again (1.2 s of processor time for 50,000 images in
    1,000 classes). Raises UserError if it is missing, damaged, of an earlier format or not a score file.
    """
    with _open_scores(path, (FORMAT,)) as (file, metadata):
        digest = metadata.pop("sha256", None)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is not iterable
        assert digest == _digest(tensors, metadata), "its content is not what was written (SHA-256)"
        scores = Scores(metadata=metadata, **tensors)
        _check(scores)
    return scores


def load_ranks(path: Path, average: str) -> tuple[Tensor, dict[str, str]]:
    """The labels' ranks int32 [N] for an average (softmax or logits), and the metadata; also from earlier formats.

    Reads a few bytes for each image, so that a report can read many files. Only load_scores verifies the digest.
    """
    with _open_scores(path, RANKED_FORMATS) as (file, metadata):
        names = (f"{average}_ranks", "index", "labels")
        ranks, index, labels = (file.get_tensor(name) for name in names)
        num_classes = file.get_slice(average).get_shape()[1]
        _check_images(index, labels, {names[0]: ranks}, num_classes)
    metadata.pop("sha256", None)
    return ranks, metadata


@contextmanager
def _open_scores(path: Path, formats: tuple[str, ...]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a score file; yields it with its metadata. Exceptions that a broken file causes become a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such score file; evaluate.py writes it")
    try:
        with safe_open(path, framework="pt") as file:
            # Keys that this code does not know stay in the metadata, and so in the digest.
            metadata = json.loads((file.metadata() or {}).get("scores", "{}"))
            if metadata.pop("format", None) not in formats:
                raise UserError(f"{path}: is no score file of this version ({FORMAT}); run evaluate.py again")
            yield file, metadata
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{path}: is a broken score file ({error}); remove it and run evaluate.py again") from error


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    # weights_sha256 hashes the names, dtypes, shapes and bytes of any tensors.
    facts = json.dumps(metadata, sort_keys=True)
    return hashlib.sha256(f"{weights_sha256(tensors)} {facts}".encode()).hexdigest()


def _check(scores: Scores) -> None:
    """Check that the content is consistent. The digest only shows that nothing changed since the file was written."""
    assert scores.logits.shape == scores.softmax.shape, "logits and softmax differ in shape"
    assert len(scores.softmax) == len(scores.index), "scores and images differ in number"
    assert scores.logits.dtype == scores.softmax.dtype == torch.float32, "the scores are not float32"
    ranks = {f"{average}_ranks": scores.ranks(average) for average in AVERAGES}
    _check_images(scores.index, scores.labels, ranks, scores.softmax.shape[1])
    # Also catches a change of the top-k rule in the code since the file was written.
    for average in AVERAGES:
        counted = label_ranks(scores.tensors()[average], scores.labels)
        assert torch.equal(counted, scores.ranks(average)), f"its {average} ranks are not those of its scores"


def _check_images(index: Tensor, labels: Tensor, ranks: dict[str, Tensor], num_classes: int) -> None:
    num_images = len(index)
    for name, values in {"labels": labels, **ranks}.items():
        assert values.shape == (num_images,), f"{name} is not one number per image"
    assert num_images and torch.equal(index, torch.arange(num_images)), "an image is missing, or is there twice"
    assert 0 <= int(labels.min()) <= int(labels.max()) < num_classes, "labels out of range"
    for name, values in ranks.items():
        assert NOT_FINITE <= int(values.min()) <= int(values.max()) < num_classes, f"{name} out of range"


def saved_scores(
    path: Path, identity: dict[str, str], *, labels: np.ndarray, with_views: bool = False, of_any_code: bool = False
) -> Scores | None:
    """The scores at `path` if their metadata equals `identity` (weights, data, protocol, code), else None.

    labels: int64 [N] of the prepared data, which must be equal too. of_any_code: accept scores that another version of
    the code computed.
    """
    if not path.is_file():
        return None
    try:
        scores = load_scores(path)
    except UserError:
        return None  # a damaged file is computed again and overwritten
    # Replacing our own code hash by the file's makes that one key equal.
    code = {"code_sha256": scores.metadata.get("code_sha256", "")} if of_any_code else {}
    found = scores.metadata == {**identity, **code} and (scores.view_logits is not None or not with_views)
    return scores if found and np.array_equal(scores.labels, labels) else None


def protocol_text(protocol: Protocol) -> str:
    """The protocol as JSON for a score file's metadata, without `average`, because a file has both averages."""
    values = dataclasses.asdict(protocol)
    # The default of a key newer than the first score files is left out, so that those stay valid.
    left_out = {"average", *(["resize"] if protocol.resize == "shorter_side" else [])}
    return json.dumps({key: values[key] for key in sorted(values) if key not in left_out})


def gather(part: Scores) -> Scores | None:
    """Join the parts of all processes in index order on the first process; None on the others.

    Parts may differ in length or be empty. Without a process group the part is returned, sorted.
    """
    tensors = {name: tensor.cpu() for name, tensor in part.tensors().items()}
    if dist.is_initialized() and dist.get_world_size() > 1:
        with cpu_group() as group:
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
            dist.all_gather(lengths, torch.tensor([len(part.index)]), group=group)
            tensors = {
                name: _gather(tensor, [int(length) for length in lengths], group) for name, tensor in tensors.items()
            }
        if dist.get_rank() > 0:
            return None
    # A score file is in the order of the split, however that was divided among the ranks.
    order = tensors["index"].argsort()
    return Scores(metadata=part.metadata, **{name: tensor[order] for name, tensor in tensors.items()})


@contextmanager
def cpu_group() -> Iterator[dist.ProcessGroup]:
    """A gloo group of all processes for CPU tensors; after a training on GPUs, the default group is NCCL."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _gather(tensor: Tensor, lengths: list[int], group: dist.ProcessGroup) -> Tensor:
    # dist.gather needs equal shapes. Padding is cut off again by `lengths`; all_gather would copy it to every process.
    padded = torch.zeros(max(lengths), *tensor.shape[1:], dtype=tensor.dtype)
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths] if dist.get_rank() == 0 else None
    dist.gather(padded, parts, dst=0, group=group)
    return padded if parts is None else torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

"""Score files: the class scores of every image, saved once and read by tables, ensembles and figures.

A score file is .safetensors, which is read without executing code. It has the means over views of softmax and logits
(papers use either, and one cannot be computed from the other), index, label and rank for each image, and metadata on
weights, data and protocol. Scores are float32, from which the ranks were counted, so that every reader counts the same
errors. That takes 400 MB for 50,000 images in 1,000 classes; float16 would take half but make ties. A digest over the
whole content is verified on every read (score_files.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor

from tencrop.config import Protocol, UserError
from tencrop.config.schema import Average
from tencrop.evaluation.errors import label_ranks
from tencrop.evaluation.score_files import FORMAT, read_scores, scores_digest
from tencrop.files import atomic_write

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
    samples: Tensor | None = None  # int64 [N], ascending: sample indices of a subset; None: of the whole split

    def ranks(self, average: str) -> Tensor:
        """Ranks of the labels, int32 [N], among the averaged softmax or logits; average: "softmax" or "logits"."""
        return {"softmax": self.softmax_ranks, "logits": self.logits_ranks}[average]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, without view_logits and samples if there are none."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "metadata"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def from_averages(
    index: Tensor,
    labels: Tensor,
    softmax: Tensor,
    logits: Tensor,
    metadata: dict[str, str],
    view_logits: Tensor | None = None,
    samples: Tensor | None = None,
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
        samples=samples,
    )


def _to_float16(scores: Tensor) -> Tensor:
    """Logits of single views as float16, as no error is counted from them: ten views of 50,000 images take 1 GB."""
    return scores.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


def save_scores(path: Path, scores: Scores) -> None:
    """Write a score file atomically: to a temporary name in its folder, then fsync and rename."""
    # safetensors refuses tensors that are not contiguous.
    tensors = {name: tensor.cpu().contiguous() for name, tensor in scores.tensors().items()}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    facts = {"format": FORMAT, "sha256": scores_digest(arrays, scores.metadata), **scores.metadata}
    # One JSON entry: safetensors writes several entries in random order, and equal scores should give equal files.
    metadata = {"scores": json.dumps(facts, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save(tensors, metadata))


def load_scores(path: Path) -> Scores:
    """The scores of images 0 to N-1 in a file, completely verified, as `read_scores` does; raises UserError as it."""
    arrays, metadata = read_scores(path)
    return Scores(metadata=metadata, **{name: torch.from_numpy(array) for name, array in arrays.items()})


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


def protocol_of(metadata: dict[str, str], average: Average) -> Protocol:
    """The protocol in a score file's metadata, with this average."""
    return Protocol(**json.loads(metadata["protocol"]), average=average)


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

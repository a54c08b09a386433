"""Score files: the class scores of every image, saved once and read by tables, ensembles and figures.

A file is .safetensors, read without executing anything: float16 means over the views of the softmax and of the
logits, the image's index and label, and what they are scores of. Float16 loses ties and tiny probabilities, so the
rank of the label, counted in float32 before rounding, stands beside them: error rates come from the ranks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tencrop.config import Protocol, UserError
from tencrop.data.manifest import write_whole
from tencrop.evaluation.errors import label_ranks

FORMAT = "tencrop scores 1"
AVERAGES = ("softmax", "logits")
FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Scores:
    """Scores of N images over K classes; `metadata` says of which weights, data and protocol (identity)."""

    index: Tensor  # int64 [N], ascending
    labels: Tensor  # int64 [N]
    softmax: Tensor  # float16 [N, K], mean over the views
    logits: Tensor  # float16 [N, K], mean over the views
    softmax_ranks: Tensor  # int32 [N], label_ranks of the float32 scores
    logits_ranks: Tensor  # int32 [N]
    metadata: dict[str, str]
    view_logits: Tensor | None = None  # float16 [N, V, K], on request

    def ranks(self, average: str) -> Tensor:
        """Ranks of the labels by the average chosen: softmax or logits."""
        return {"softmax": self.softmax_ranks, "logits": self.logits_ranks}[average]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
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
    """Scores of float32 averages [N, K]: ranks are counted first, then the averages are rounded to float16."""
    return Scores(
        index=index,
        labels=labels,
        softmax=_half(softmax),
        logits=_half(logits),
        softmax_ranks=label_ranks(softmax, labels),
        logits_ranks=label_ranks(logits, labels),
        metadata=metadata,
        view_logits=None if view_logits is None else _half(view_logits),
    )


def _half(scores: Tensor) -> Tensor:
    return scores.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


def save_scores(path: Path, scores: Scores) -> None:
    """Write the file whole or not at all: a temporary name in its folder, fsync, rename."""
    # one entry, because safetensors writes several in random order
    metadata = {"scores": json.dumps({"format": FORMAT, **scores.metadata}, sort_keys=True)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in scores.tensors().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, metadata))


def load_scores(path: Path) -> Scores:
    """The scores of a file; UserError where it is missing, broken or no score file."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such score file; evaluate.py writes it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("scores", "{}"))
            if metadata.pop("format", None) != FORMAT:
                raise UserError(f"{path}: is no score file of this version ({FORMAT}); run evaluate.py again")
            scores = Scores(metadata=metadata, **{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  not iterable itself
        _check(scores)
    except UserError:
        raise
    except (SafetensorError, TypeError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{path}: is a broken score file ({error}); remove it and run evaluate.py again") from error
    return scores


def _check(scores: Scores) -> None:
    num_images, num_classes = scores.softmax.shape
    assert scores.logits.shape == scores.softmax.shape, "logits and softmax differ in shape"
    for name in ("index", "labels", "softmax_ranks", "logits_ranks"):
        assert scores.tensors()[name].shape == (num_images,), f"{name} is not one number an image"
    assert bool((scores.index.diff() > 0).all()), "an image stands twice, or out of order"
    assert num_images and 0 <= int(scores.labels.min()) <= int(scores.labels.max()) < num_classes, "labels out of range"


def saved_scores(path: Path, identity: dict[str, str], *, with_views: bool = False) -> Scores | None:
    """The scores at `path` if they are those that `identity` names (weights, data, protocol), else None."""
    if not path.is_file():
        return None
    try:
        scores = load_scores(path)
    except UserError:
        return None  # computed again, and written over
    found = scores.metadata == identity and (scores.view_logits is not None or not with_views)
    return scores if found else None


def protocol_text(protocol: Protocol) -> str:
    """The protocol as a score file's metadata has it: JSON without the average, as a file holds both averages."""
    values = dataclasses.asdict(protocol)
    return json.dumps({key: values[key] for key in sorted(values) if key != "average"})


def gather(part: Scores) -> Scores | None:
    """The parts of all processes as one, in index order, on the first process; None on the others.

    Parts may differ in length, and be empty. Without a process group the part is the whole.
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
    order = tensors["index"].argsort()
    return Scores(metadata=part.metadata, **{name: tensor[order] for name, tensor in tensors.items()})


@contextmanager
def cpu_group() -> Iterator[dist.ProcessGroup]:
    """All processes, joined for tensors on the CPU, whatever their devices are joined by."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _gather(tensor: Tensor, lengths: list[int], group: dist.ProcessGroup) -> Tensor:
    padded = torch.zeros(max(lengths), *tensor.shape[1:], dtype=tensor.dtype)
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths] if dist.get_rank() == 0 else None
    dist.gather(padded, parts, dst=0, group=group)
    return padded if parts is None else torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

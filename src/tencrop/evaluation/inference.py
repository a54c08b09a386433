"""Run a network over one rank's part of the evaluation split: load, cut views, normalize, forward, average.

Called by processes.py, which distributes the split over processes and gathers their parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tencrop.config import Config, Hardware, Protocol, UserError, accelerator_of, num_workers
from tencrop.console import plain_console
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import normalize
from tencrop.data.augmentation.mean_image import resized_mean
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.loaders import loader_class
from tencrop.data.preparation.verify import verified
from tencrop.data.sampling.sampler import evaluation_batches, split_to_fit_memory
from tencrop.data.store.manifest import Split, open_split
from tencrop.distributed.gpus import check_num_gpus
from tencrop.evaluation.allocator import keep_freed_memory
from tencrop.evaluation.predictions import Scores, from_averages
from tencrop.evaluation.protocols import REFLECTED, Sizes, merge, num_views, view_groups
from tencrop.evaluation.subsets import evaluated_index
from tencrop.models.convolutional import MeanScores, fully_convolutional
from tencrop.models.factory import build_model
from tencrop.models.weights import apply_weights, load_weights
from tencrop.progress import counting_images
from tencrop.training.precision import set_precision

DEFAULT_MICRO_BATCH = {"cpu": 32, "gpu": 256}  # images in a forward pass if hardware.max_micro_batch is null


@dataclass(frozen=True)
class ScoringTask:
    """What a process needs to score its part of the split. It is pickled for every process, so it holds no weights."""

    config: Config
    path: Path  # file with the weights
    kind: str  # raw | ema
    num_classes: int
    mean: list[float]  # on [0, 255], like `std`
    std: list[float]
    identity: dict[str, str]  # metadata of the scores: hashes of weights, data, protocol and code
    mean_image: Tensor | None = None  # float32 [S, S, 3], subtracted instead of `mean`


def build_network(task: ScoringTask) -> nn.Module:
    """Build the network on the CPU and load the task's weights into it."""
    network = build_model(task.config.model, num_classes=task.num_classes)
    state = load_weights(task.path, ema=task.kind == "ema").state
    name, by = task.config.model.name, task.config.weights_by
    apply_weights(network, state, source=str(task.path), name=name, num_classes=task.num_classes, by=by)
    return network


def open_val_split(config: Config) -> Split:
    """The split that is evaluated, opened; its images are mapped, not read."""
    return open_split(config.data.root, "val", source=config.data.source, data=config.data.name)


def score_part(
    task: ScoringTask, network: nn.Module, split: Split, *, rank: int, num_ranks: int, local_rank: int = 0
) -> Scores:
    """Scores of this rank's part of the split, on its device; the part may be empty.

    local_rank: rank among the processes on this machine, and so the index of its GPU. If the protocol has several
    sides, one loader for each side yields the same images, and the scores are averages over the views at all sides.
    """
    config, num_classes = task.config, task.num_classes
    if config.protocol.name == "dense":
        size, name = config.protocol.size, config.model.name
        network = MeanScores(fully_convolutional(network, image_size=size, name=name))
    set_precision(config.training.precision)
    device = _device(config.hardware, local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
    index = evaluated_index(config, split)
    batches = evaluation_batches(index, micro_batch=micro_batch_of(config), rank=rank, num_ranks=num_ranks)
    # A batch is padded to its largest image. With several sides, the largest one decides how the batches are cut.
    largest = replace(config.protocol, side=max(config.protocol.sides, key=lambda side: side or 0))
    plan = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=largest)
    batches = split_to_fit_memory(batches, plan.sizes)

    # An empty first part, so that a rank without images returns tensors of the right shapes and dtypes.
    nothing = torch.empty(0, dtype=torch.int64)
    no_scores = torch.empty(0, num_classes, device=device)
    no_views = torch.empty(0, num_views(config.protocol), num_classes, device=device) if config.save_views else None
    # Of the whole split, a sample's index is its position.
    is_subset = len(index) < split.num_samples
    no_samples = nothing if is_subset else None
    parts = [from_averages(nothing, nothing.to(device), no_scores, no_scores, task.identity, no_views, no_samples)]
    mean, std = torch.tensor(task.mean, device=device), torch.tensor(task.std, device=device)
    mean = mean if task.mean_image is None else task.mean_image.to(device)
    protocols = [replace(config.protocol, side=side) for side in config.protocol.sides]
    # ExitStack: the threads of all loaders end, also if a damaged image raises in the middle.
    with torch.inference_mode(), _explaining_out_of_memory(config, device), ExitStack() as stack:
        loaders = [stack.enter_context(_loader(config, split, batches, device, protocol)) for protocol in protocols]
        scales = zip(*loaders, strict=True)  # the same images at every side
        # A damaged image that still decodes would only give other scores.
        intact = verified(scales, split, index_of=lambda batches: batches[0].index)
        for batch_at_sides in _with_progress(intact, len(index), rank=rank, num_ranks=num_ranks):
            batch = batch_at_sides[0]
            # Each loader runs ahead on its own threads. Views of two different images must never be averaged.
            assert all(np.array_equal(other.index, batch.index) for other in batch_at_sides)
            logits = torch.cat(  # over the sides: [V, B, K], V views at all sides
                [
                    view_logits(network, one, mean, std, replace(config, protocol=protocol))
                    for one, protocol in zip(batch_at_sides, protocols, strict=True)
                ]
            )
            assert logits.shape[::2] == (num_views(config.protocol), num_classes), f"the network gives {logits.shape}"
            # Average on the device: copying the logits of every view would move up to 144 times as many numbers.
            softmax, mean_logits = merge(logits)
            # Scores are numbered by position in the subset that is evaluated, not in the whole split.
            positions = torch.from_numpy(np.searchsorted(index, batch.index))
            labels = batch.labels.to(device, non_blocking=True)
            of_views = logits.transpose(0, 1) if config.save_views else None
            samples = torch.from_numpy(batch.index) if is_subset else None
            parts.append(from_averages(positions, labels, softmax, mean_logits, task.identity, of_views, samples))
    tensors = [part.tensors() for part in parts]
    return Scores(metadata=task.identity, **{name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})


def micro_batch_of(config: Config) -> int:
    return config.hardware.max_micro_batch or DEFAULT_MICRO_BATCH[accelerator_of(config.hardware)]


@contextmanager
def _explaining_out_of_memory(config: Config, device: torch.device) -> Iterator[None]:
    """Turn torch.OutOfMemoryError into a UserError that says how many images to take in a forward pass."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        limit, num_images = config.hardware.max_micro_batch, micro_batch_of(config)
        raise UserError(
            f"hardware.max_micro_batch={'null' if limit is None else limit}: {device} ran out of memory in a forward"
            f" pass of up to {num_images} images; "
            + (
                f"set a smaller one, such as hardware.max_micro_batch={max(num_images // 4, 1)}"
                if num_images > 1
                else "choose a GPU with more memory, or hardware=cpu"
            )
        ) from error


def view_logits(network: nn.Module, batch: Batch, mean: Tensor, std: Tensor, config: Config) -> Tensor:
    """Logits float32 [V, B, K] of all V views of a batch, on the device of `mean`.

    mean: [3], or the mean image [S, S, 3], whose part at the place of a view is subtracted from that view.
    """
    images = batch.images.to(mean.device, non_blocking=True)
    groups, slots_of_groups = [], []
    for slots, group in view_groups(images, batch.sizes, config.protocol):
        means = repeat(mean) if mean.ndim == 1 else _mean_views(mean, config, batch.sizes[slots[0]])
        pairs = zip(group, means, strict=False)  # repeat(mean) is endless
        inputs = (normalize(view, mean, std, channels_last=config.model.channels_last) for view, mean in pairs)
        # A generator: one view is cut, normalized and scored at a time. All views at once would be ten batches.
        groups.append(torch.stack([forward(network, view, config) for view in inputs]))
        slots_of_groups.append(slots)
    # Dense evaluation groups images by size, so the groups come in another order than the batch.
    order = torch.from_numpy(np.concatenate(slots_of_groups).argsort()).to(mean.device, non_blocking=True)
    return torch.cat(groups, dim=1)[:, order]


def _mean_views(mean_image: Tensor, config: Config, whole: Sizes) -> Iterator[Tensor]:
    """The part of the mean image for each view, [1, 3, H, W], in the order of the views.

    whole: [2], height and width of the whole images, which dense evaluation needs.
    normalization.mean=image: views are cut from the mean image as from any image, because check_mean_image accepts only
    protocols whose views lie in the square that it covers. image_center: one part for all views, flipped for flipped
    views.
    """
    protocol = config.protocol
    if config.normalization.mean == "image":
        ((_, group),) = view_groups(mean_image[None], np.array([mean_image.shape[:2]]), protocol)
        return (view.permute(0, 3, 1, 2) for view in group)
    height, width = whole.tolist() if protocol.name == "dense" else (protocol.size, protocol.size)
    image = resized_mean(mean_image, height, width)
    num_reflected = num_views(protocol) // 2 if protocol.name in REFLECTED else 0
    return chain(repeat(image, num_views(protocol) - num_reflected), repeat(image.flip(3), num_reflected))


def forward(network: nn.Module, inputs: Tensor, config: Config) -> Tensor:
    """Logits float32 [B, K] of normalized images [B, 3, H, W].

    Computed in the recipe's precision, except for the last layer, which build_model keeps in float32: with bfloat16
    logits the best two classes of an image often tie.
    """
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.training.precision == "bf16"):
        return network(inputs).float()


@contextmanager
def _loader(
    config: Config, split: Split, batches: list[np.ndarray], device: torch.device, protocol: Protocol
) -> Iterator[Iterator[Batch]]:
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
    loader = loader_class(config.data.loader)(
        split,
        lambda epoch: batches,  # there is only one epoch
        lambda index, epoch: plan(index),
        filter=protocol.filter,
        num_threads=num_workers(config.hardware),
        pin_memory=device.type == "cuda",
    )
    try:
        yield loader.batches(epoch=0)
    finally:
        loader.close()


def _with_progress(
    batches: Iterator[tuple[Batch, ...]], num_images: int, *, rank: int, num_ranks: int
) -> Iterator[tuple[Batch, ...]]:
    """Yield the batches and show progress on rank 0, which assumes that the other ranks are equally far.

    An exact count would need a collective operation for each batch.
    """
    console = plain_console(stderr=True, quiet=rank != 0)
    with counting_images(console, "evaluating", num_images, transient=True) as advance:
        num_left = num_images
        for batch in batches:
            yield batch
            num_done = min(num_left, len(batch[0].index) * num_ranks)
            advance(num_done)
            num_left -= num_done


def _device(hardware: Hardware, local_rank: int) -> torch.device:
    """This rank's device, chosen by its rank on this machine.

    The rank in the group would be wrong: srun may assign ranks to machines in turn (--distribution=cyclic).
    """
    if accelerator_of(hardware) == "cpu":
        return torch.device("cpu")
    check_num_gpus(hardware, local_rank + 1)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)

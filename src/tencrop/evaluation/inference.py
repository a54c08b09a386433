"""The forward passes: every image of the evaluation split once through a network, on any number of processes.

Called by evaluate.py. Each process scores a contiguous part; the parts are gathered on the first one.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tencrop.config import Config, Hardware, Protocol, UserError, accelerator_of, num_threads, num_workers
from tencrop.config.disk_errors import disk_sentence
from tencrop.config.launcher import is_first_process, launched
from tencrop.console import plain_console
from tencrop.data.augmentation.batch import Batch
from tencrop.data.augmentation.color import normalize
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.loaders import loader_class
from tencrop.data.sampling.sampler import MAX_PADDED_BYTES, check_rescaled, evaluation_batches, within_memory
from tencrop.data.store.manifest import Split, open_split
from tencrop.distributed.cluster import cluster_environment
from tencrop.distributed.rendezvous import meet_launched
from tencrop.evaluation.predictions import Scores, from_averages, gather, load_scores, save_scores
from tencrop.evaluation.protocols import merge, num_views, view_groups
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.convolutional import MeanScores, fully_convolutional, largest_layer_bytes
from tencrop.models.factory import build_model, check_image_size
from tencrop.models.weights import apply_weights, load_weights
from tencrop.progress import counting_images
from tencrop.training.precision import set_precision

IMAGES_AT_ONCE = {"cpu": 32, "gpu": 256}  # where hardware.max_micro_batch is null
SAID_ABOVE_BYTES = 4_000_000_000  # of memory for one layer: a machine or GPU may not have it


@dataclass(frozen=True)
class Task:
    """All that a process must know to score its part; small, because it travels to other processes."""

    config: Config
    path: Path  # of the weights
    kind: str  # raw | ema
    num_classes: int
    mean: list[float]  # on [0, 255], as `std`
    std: list[float]
    identity: dict[str, str]  # becomes the metadata of the scores


def build_network(task: Task) -> nn.Module:
    """The network with the task's weights, on the CPU."""
    network = build_model(task.config.model, num_classes=task.num_classes)
    state = load_weights(task.path, ema=task.kind == "ema").state
    apply_weights(network, state, source=str(task.path), name=f"{task.config.model.name} ({task.num_classes} classes)")
    return network


def join_launched() -> None:
    """Join the processes that srun or torchrun started; nothing to do without them, or after a training."""
    found, store = launched(), meet_launched()
    if found is None or store is None:
        return
    environment = cluster_environment()
    address = f"tcp://{environment.main_address}:{environment.main_port}"  # where `store` serves until torch's does
    dist.init_process_group("gloo", address, rank=environment.global_rank(), world_size=found.num_processes)
    atexit.register(dist.destroy_process_group)


def score_split(task: Task, network: nn.Module) -> Scores | None:
    """Scores of every image, in index order; None on all processes of a group but the first.

    Processes: those of the process group where there is one (after training, or under srun or torchrun), else as
    many as hardware.devices says, started here. Raises UserError where the hardware is not as configured.
    """
    config = task.config
    split = open_val_split(config)
    if not dist.is_initialized() and config.hardware.devices > 1:
        scores: Scores | None = _score_in_new_processes(task, config.hardware.devices)
    else:
        rank, num_ranks, local_rank = 0, 1, 0
        if dist.is_initialized():
            rank, num_ranks, local_rank = dist.get_rank(), dist.get_world_size(), cluster_environment().local_rank()
        scores = gather(score_part(task, network, split, rank=rank, num_ranks=num_ranks, local_rank=local_rank))
    if scores is not None:
        assert torch.equal(scores.index, torch.arange(split.num_samples)), "an image was left out or counted twice"
        assert np.array_equal(scores.labels, split.labels)
    return scores


def check_scorable(network: nn.Module, config: Config) -> None:
    """Raises UserError where the network, on the CPU, or an image of the split does not fit the protocol; says what
    the largest image takes where that is much.

    A pass of one image; afterwards the network is in eval mode.
    """
    protocol, name = config.protocol, config.model.name
    split = open_val_split(config)
    _refuse_small_images(config, split)
    for side in protocol.sides:
        sizes = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=replace(protocol, side=side))
        said = check_rescaled(sizes.sizes, split.names, key=f"protocol.side={'null' if side is None else side}")
        if said is not None and is_first_process():
            print(said, file=sys.stderr)
    check_image_size(network, name, protocol.size, key="protocol.size")
    if protocol.name == "dense":
        _say_what_dense_takes(fully_convolutional(network, image_size=protocol.size, name=name), config, split)


def _say_what_dense_takes(network: nn.Module, config: Config, split: Split) -> None:
    """A network sees whole images of any size at once: the maps of a batch may be many times its pixels."""
    largest = replace(config.protocol, side=max(config.protocol.sides, key=lambda side: side or 0))
    sizes = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=largest).sizes
    height, width = sizes[sizes.astype(np.int64).prod(axis=1).argmax()].tolist()
    one, num_at_once = largest_layer_bytes(network, height, width), _num_at_once(config)
    num_bytes = one * max(1, min(num_at_once, MAX_PADDED_BYTES // (3 * height * width)))
    if num_bytes > SAID_ABOVE_BYTES and is_first_process():
        print(
            f"protocol=dense: images of up to {width} x {height} pixels take up to {num_bytes / 1e9:.1f} GB in one"
            f" layer of {config.model.name}, {num_at_once} at once (hardware.max_micro_batch)",
            file=sys.stderr,
        )


def open_val_split(config: Config) -> Split:
    """The split that is evaluated."""
    return open_split(config.data.root, "val", source=config.data.source, data=config.data.name)


def score_part(
    task: Task, network: nn.Module, split: Split, *, rank: int, num_ranks: int, local_rank: int = 0
) -> Scores:
    """Scores of this rank's part of the split, on its device; the part may be empty.

    local_rank: of the ranks on this machine, each has a GPU.
    Where the protocol has several sides, a loader for each gives the same images, and views of all are averaged.
    """
    config, num_classes = task.config, task.num_classes
    if config.protocol.name == "dense":
        size, name = config.protocol.size, config.model.name
        network = MeanScores(fully_convolutional(network, image_size=size, name=name))
    set_precision(config.training.precision)
    device = _device(config.hardware, local_rank)
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
    index = np.arange(split.num_samples)
    batches = evaluation_batches(index, micro_batch=_num_at_once(config), rank=rank, num_ranks=num_ranks)
    largest = replace(config.protocol, side=max(config.protocol.sides, key=lambda side: side or 0))
    batches = within_memory(batches, evaluation_plan(index, split.stored_sizes, protocol=largest).sizes)

    nothing = torch.empty(0, dtype=torch.int64)
    no_scores = torch.empty(0, num_classes, device=device)
    no_views = torch.empty(0, num_views(config.protocol), num_classes, device=device) if config.save_views else None
    parts = [from_averages(nothing, nothing.to(device), no_scores, no_scores, task.identity, no_views)]
    mean, std = torch.tensor(task.mean, device=device), torch.tensor(task.std, device=device)
    protocols = [replace(config.protocol, side=side) for side in config.protocol.sides]
    with torch.inference_mode(), ExitStack() as stack:
        loaders = [stack.enter_context(_loader(config, split, batches, device, protocol)) for protocol in protocols]
        scales = zip(*loaders, strict=True)  # each image at every side
        for batches_here in _with_progress(scales, split.num_samples, rank=rank, num_ranks=num_ranks):
            batch = batches_here[0]
            assert all(np.array_equal(other.index, batch.index) for other in batches_here)
            logits = torch.cat(
                [
                    view_logits(network, one, mean, std, replace(config, protocol=protocol))
                    for one, protocol in zip(batches_here, protocols, strict=True)
                ]
            )
            assert logits.shape[::2] == (num_views(config.protocol), num_classes), f"the network gives {logits.shape}"
            softmax, mean_logits = merge(logits)
            index_here, labels = torch.from_numpy(batch.index), batch.labels.to(device, non_blocking=True)
            of_views = logits.transpose(0, 1) if config.save_views else None
            parts.append(from_averages(index_here, labels, softmax, mean_logits, task.identity, of_views))
    tensors = [part.tensors() for part in parts]
    return Scores(metadata=task.identity, **{name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})


def _num_at_once(config: Config) -> int:
    return config.hardware.max_micro_batch or IMAGES_AT_ONCE[accelerator_of(config.hardware)]


def view_logits(network: nn.Module, batch: Batch, mean: Tensor, std: Tensor, config: Config) -> Tensor:
    """Logits float32 [V, B, K] of all views of a batch, on the device of `mean`."""
    images = batch.images.to(mean.device, non_blocking=True)
    groups, slots_of_groups = [], []
    for slots, group in view_groups(images, batch.sizes, config.protocol):
        inputs = (normalize(view, mean, std, channels_last=config.model.channels_last) for view in group)
        groups.append(torch.stack([forward(network, view, config) for view in inputs]))
        slots_of_groups.append(slots)
    order = torch.from_numpy(np.concatenate(slots_of_groups).argsort()).to(mean.device, non_blocking=True)
    return torch.cat(groups, dim=1)[:, order]


def forward(network: nn.Module, inputs: Tensor, config: Config) -> Tensor:
    """Logits float32 [B, K] of normalized images [B, 3, H, W], in the precision of the recipe but for the last layer,
    which build_model keeps in float32."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.training.precision == "bf16"):
        return network(inputs).float()


@contextmanager
def _loader(
    config: Config, split: Split, batches: list[np.ndarray], device: torch.device, protocol: Protocol
) -> Iterator[Iterator[Batch]]:
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=protocol)
    loader = loader_class(config.data.loader)(
        split,
        lambda epoch: batches,
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
    """The batches, at every side, and the progress of the first rank, which takes the others to be as far."""
    console = plain_console(stderr=True, quiet=rank != 0)
    with counting_images(console, "evaluating", num_images, transient=True) as advance:
        num_left = num_images
        for batch in batches:
            yield batch
            num_done = min(num_left, len(batch[0].index) * num_ranks)
            advance(num_done)
            num_left -= num_done


def _refuse_small_images(config: Config, split: Split) -> None:
    if config.protocol.side is not None:
        return  # no side is smaller than a crop
    plan = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=config.protocol)
    sides = plan.sizes.min(1)
    smallest = int(sides.argmin())
    if sides[smallest] < config.protocol.size:
        raise UserError(
            f"protocol.side=null: {split.names(smallest)} has a shorter side of {sides[smallest]}"
            f" pixels, less than the crop's {config.protocol.size}; set protocol.side={config.protocol.size} or more"
        )


def _device(hardware: Hardware, local_rank: int) -> torch.device:
    """Not by the rank in the group: srun may deal ranks out to the machines in turn (--distribution=cyclic)."""
    if accelerator_of(hardware) == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"hardware.devices={hardware.devices}: torch sees {torch.cuda.device_count()} GPUs here;"
            " choose fewer, or hardware=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _score_in_new_processes(task: Task, num_processes: int) -> Scores:
    messages = mp.get_context("spawn").SimpleQueue()  # not a file: the disk may be what is full
    with tempfile.TemporaryDirectory(prefix="tencrop-") as folder:
        try:
            _spawn_and_join(task, num_processes, Path(folder), messages)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            if not messages.empty():
                raise UserError(messages.get()) from error
            if isinstance(error, mp.ProcessExitedException) and error.exit_code == 2:
                sys.exit(2)  # it has said why: the store has become shorter while it was read (data/native/mapped.py)
            raise
        return load_scores(Path(folder, "scores.safetensors"))


def _spawn_and_join(task: Task, num_processes: int, folder: Path, messages: SimpleQueue[str]) -> None:
    """Ctrl-C, which a terminal sends to all, is for this process: it ends the others, in silence."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited until they are in `_process`
    try:
        processes = mp.spawn(_process, (task, num_processes, folder, messages), nprocs=num_processes, join=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes is not None
    try:
        while not processes.join():
            pass
    except BaseException:
        for process in processes.processes:
            process.kill()
        raise


def _process(rank: int, task: Task, num_ranks: int, folder: Path, messages: SimpleQueue[str]) -> None:
    """The life of a started process; the first one leaves the scores in `folder`, one that fails a sentence."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch has it sent when the parent is killed
    try:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_threads("auto", num_ranks))
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=num_ranks)
        network = build_network(task)
        if weights_sha256(network.state_dict()) != task.identity["weights_sha256"]:
            raise UserError(f"{task.path}: was written anew while it was evaluated; evaluate it again")
        split = open_val_split(task.config)
        part = score_part(task, network, split, rank=rank, num_ranks=num_ranks, local_rank=rank)
        scores = gather(part)
        if scores is not None:
            save_scores(folder / "scores.safetensors", scores)
    except UserError as error:
        messages.put(str(error))
        raise
    except OSError as error:
        messages.put(disk_sentence(error))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

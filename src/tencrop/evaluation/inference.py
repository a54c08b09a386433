"""Run a network over every image of the evaluation split exactly once, on one or several processes.

Each process scores a contiguous part of the split; the parts are gathered on the first process.
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
from tencrop.data.sampling.sampler import MAX_PADDED_BYTES, check_rescaled, evaluation_batches, split_to_fit_memory
from tencrop.data.store.manifest import Split, open_split
from tencrop.distributed.cluster import cluster_environment
from tencrop.distributed.gpus import check_num_gpus
from tencrop.distributed.rendezvous import meet_launched
from tencrop.evaluation.predictions import Scores, from_averages, gather, load_scores, save_scores
from tencrop.evaluation.protocols import merge, num_views, view_groups
from tencrop.models.checkpoint_files import weights_sha256
from tencrop.models.convolutional import MeanScores, fully_convolutional, largest_layer_bytes
from tencrop.models.factory import build_model, check_image_size
from tencrop.models.weights import apply_weights, load_weights
from tencrop.progress import counting_images
from tencrop.training.precision import set_precision

DEFAULT_MICRO_BATCH = {"cpu": 32, "gpu": 256}  # images in a forward pass if hardware.max_micro_batch is null
REPORT_ABOVE_BYTES = 4_000_000_000  # activations of one layer above this size are reported


@dataclass(frozen=True)
class ScoringTask:
    """What a process needs to score its part of the split. It is pickled for every process, so it holds no weights."""

    config: Config
    path: Path  # file with the weights
    kind: str  # raw | ema
    num_classes: int
    mean: list[float]  # on [0, 255], like `std`
    std: list[float]
    identity: dict[str, str]  # hashes of weights, data, protocol and code: the metadata of the scores


def build_network(task: ScoringTask) -> nn.Module:
    """Build the network on the CPU and load the task's weights into it."""
    network = build_model(task.config.model, num_classes=task.num_classes)
    state = load_weights(task.path, ema=task.kind == "ema").state
    apply_weights(network, state, source=str(task.path), name=f"{task.config.model.name} ({task.num_classes} classes)")
    return network


def join_launched() -> None:
    """Make a process group of the processes that srun or torchrun started.

    Does nothing without such a launcher, and after a training, whose process group is used.
    """
    found, store = launched(), meet_launched()
    if found is None or store is None:
        return
    environment = cluster_environment()
    # `store` listens on this address until torch's own store does; it must stay referenced until then.
    address = f"tcp://{environment.main_address}:{environment.main_port}"
    # gloo and not NCCL: scores are gathered in host memory, where the tensors of all images fit.
    dist.init_process_group("gloo", address, rank=environment.global_rank(), world_size=found.num_processes)
    atexit.register(dist.destroy_process_group)


def score_split(task: ScoringTask, network: nn.Module) -> Scores | None:
    """Scores of every image, in index order; None on every process of a group but the first.

    Uses the process group if there is one (after training, or under srun or torchrun); otherwise starts
    hardware.devices processes. Raises UserError if the machine has fewer GPUs than the configuration asks for.
    """
    config = task.config
    split = open_val_split(config)
    # One process for each device, as in training.
    if not dist.is_initialized() and config.hardware.devices > 1:
        scores: Scores | None = _score_in_new_processes(task, config.hardware.devices)
    else:
        rank, num_ranks, local_rank = 0, 1, 0
        if dist.is_initialized():
            rank, num_ranks, local_rank = dist.get_rank(), dist.get_world_size(), cluster_environment().local_rank()
        scores = gather(score_part(task, network, split, rank=rank, num_ranks=num_ranks, local_rank=local_rank))
    if scores is not None:
        # The claim of the whole module, checked on every evaluation: no image dropped, none padded or counted twice.
        assert torch.equal(scores.index, torch.arange(split.num_samples)), "an image was left out or counted twice"
        assert np.array_equal(scores.labels, split.labels)
    return scores


def check_scorable(network: nn.Module, config: Config) -> None:
    """Raises UserError if the network (on the CPU) or an image of the split does not fit the protocol.

    Prints how much memory the largest image takes, if that is a lot. Runs forward passes of one image. Afterwards every
    layer is in the mode (train or eval) that it was in before.
    """
    with _layer_modes_restored(network):
        _check_scorable(network, config)


@contextmanager
def _layer_modes_restored(network: nn.Module) -> Iterator[None]:
    # Layer by layer: network.train() would also switch layers that were deliberately in eval mode.
    modes = [(layer, layer.training) for layer in network.modules()]
    try:
        yield
    finally:
        for layer, is_training in modes:
            layer.training = is_training


def _check_scorable(network: nn.Module, config: Config) -> None:
    protocol, name = config.protocol, config.model.name
    split = open_val_split(config)
    # Before any image is scored: an hour into a run, one tall image would otherwise end it.
    _refuse_small_images(config, split)
    for side in protocol.sides:
        sizes = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=replace(protocol, side=side))
        notice = check_rescaled(sizes.sizes, split.names, key=f"protocol.side={'null' if side is None else side}")
        if notice is not None and is_first_process():
            print(notice, file=sys.stderr)
    check_image_size(network, name, protocol.size, key="protocol.size")
    if protocol.name == "dense":
        _report_dense_memory(fully_convolutional(network, image_size=protocol.size, name=name), config, split)


def _report_dense_memory(network: nn.Module, config: Config, split: Split) -> None:
    """Print how much memory dense evaluation takes in its largest layer, if it may be more than a GPU has.

    Whole images of any size go through the network, so feature maps may be many times larger than in training.
    """
    largest = replace(config.protocol, side=max(config.protocol.sides, key=lambda side: side or 0))
    sizes = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=largest).sizes
    height, width = sizes[sizes.astype(np.int64).prod(axis=1).argmax()].tolist()
    # The loader also limits a batch to MAX_PADDED_BYTES of pixels, so few of the largest images are ever together.
    one, num_at_once = largest_layer_bytes(network, height, width), _micro_batch(config)
    num_bytes = one * max(1, min(num_at_once, MAX_PADDED_BYTES // (3 * height * width)))
    if num_bytes > REPORT_ABOVE_BYTES and is_first_process():
        print(
            f"protocol=dense: images of up to {width} x {height} pixels take up to {num_bytes / 1e9:.1f} GB in one"
            f" layer of {config.model.name}, {num_at_once} at once (hardware.max_micro_batch)",
            file=sys.stderr,
        )


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
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
    index = np.arange(split.num_samples)
    batches = evaluation_batches(index, micro_batch=_micro_batch(config), rank=rank, num_ranks=num_ranks)
    # Images of one batch are padded to its largest one; batches are cut for the largest side, and used for all sides.
    largest = replace(config.protocol, side=max(config.protocol.sides, key=lambda side: side or 0))
    batches = split_to_fit_memory(batches, evaluation_plan(index, split.stored_sizes, protocol=largest).sizes)

    # An empty first part, so that a rank without images returns tensors of the right shapes and dtypes.
    nothing = torch.empty(0, dtype=torch.int64)
    no_scores = torch.empty(0, num_classes, device=device)
    no_views = torch.empty(0, num_views(config.protocol), num_classes, device=device) if config.save_views else None
    parts = [from_averages(nothing, nothing.to(device), no_scores, no_scores, task.identity, no_views)]
    mean, std = torch.tensor(task.mean, device=device), torch.tensor(task.std, device=device)
    protocols = [replace(config.protocol, side=side) for side in config.protocol.sides]
    # ExitStack: the threads of all loaders end, also if a damaged image raises in the middle.
    with torch.inference_mode(), ExitStack() as stack:
        loaders = [stack.enter_context(_loader(config, split, batches, device, protocol)) for protocol in protocols]
        scales = zip(*loaders, strict=True)  # the same images at every side
        for batches_here in _with_progress(scales, split.num_samples, rank=rank, num_ranks=num_ranks):
            batch = batches_here[0]
            # Each loader runs ahead on its own threads. Views of two different images must never be averaged.
            assert all(np.array_equal(other.index, batch.index) for other in batches_here)
            logits = torch.cat(  # over the sides: [V, B, K], V views at all sides
                [
                    view_logits(network, one, mean, std, replace(config, protocol=protocol))
                    for one, protocol in zip(batches_here, protocols, strict=True)
                ]
            )
            assert logits.shape[::2] == (num_views(config.protocol), num_classes), f"the network gives {logits.shape}"
            # Averaged here, on the device: the logits of all single views are up to 144 times as many numbers.
            softmax, mean_logits = merge(logits)
            index_here, labels = torch.from_numpy(batch.index), batch.labels.to(device, non_blocking=True)
            of_views = logits.transpose(0, 1) if config.save_views else None
            parts.append(from_averages(index_here, labels, softmax, mean_logits, task.identity, of_views))
    tensors = [part.tensors() for part in parts]
    return Scores(metadata=task.identity, **{name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})


def _micro_batch(config: Config) -> int:
    return config.hardware.max_micro_batch or DEFAULT_MICRO_BATCH[accelerator_of(config.hardware)]


def view_logits(network: nn.Module, batch: Batch, mean: Tensor, std: Tensor, config: Config) -> Tensor:
    """Logits float32 [V, B, K] of all V views of a batch, on the device of `mean`."""
    images = batch.images.to(mean.device, non_blocking=True)
    groups, slots_of_groups = [], []
    for slots, group in view_groups(images, batch.sizes, config.protocol):
        inputs = (normalize(view, mean, std, channels_last=config.model.channels_last) for view in group)
        # A generator: one view is cut, normalized and scored at a time. All views at once would be ten batches.
        groups.append(torch.stack([forward(network, view, config) for view in inputs]))
        slots_of_groups.append(slots)
    # Dense evaluation groups images by size, so the groups come in another order than the batch.
    order = torch.from_numpy(np.concatenate(slots_of_groups).argsort()).to(mean.device, non_blocking=True)
    return torch.cat(groups, dim=1)[:, order]


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


def _refuse_small_images(config: Config, split: Split) -> None:
    if config.protocol.side is not None:
        return  # check_protocol refuses a side smaller than the crop
    plan = evaluation_plan(np.arange(split.num_samples), split.stored_sizes, protocol=config.protocol)
    sides = plan.sizes.min(1)
    smallest = int(sides.argmin())
    if sides[smallest] < config.protocol.size:
        raise UserError(
            f"protocol.side=null: {split.names(smallest)} has a shorter side of {sides[smallest]}"
            f" pixels, less than the crop's {config.protocol.size}; set protocol.side={config.protocol.size} or more"
        )


def _device(hardware: Hardware, local_rank: int) -> torch.device:
    """This rank's device, chosen by its rank on this machine.

    The rank in the group would be wrong: srun may assign ranks to machines in turn (--distribution=cyclic).
    """
    if accelerator_of(hardware) == "cpu":
        return torch.device("cpu")
    check_num_gpus(hardware, local_rank + 1)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _score_in_new_processes(task: ScoringTask, num_processes: int) -> Scores:
    # An error message goes through a queue, not a file: the error may be a full disk.
    messages = mp.get_context("spawn").SimpleQueue()
    # The scores come back in a score file, which is verified when it is read, and not through a pipe.
    with tempfile.TemporaryDirectory(prefix="tencrop-") as folder:
        try:
            _spawn_and_join(task, num_processes, Path(folder), messages)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            if not messages.empty():
                raise UserError(messages.get()) from error
            if isinstance(error, mp.ProcessExitedException) and error.exit_code == 2:
                sys.exit(2)  # it printed why: the store was truncated while it was read (data/native/mapped.py)
            raise
        return load_scores(Path(folder, "scores.safetensors"))


def _spawn_and_join(task: ScoringTask, num_processes: int, folder: Path, messages: SimpleQueue[str]) -> None:
    """Run `_process` in new processes and wait for all of them; on Ctrl-C, end them without their tracebacks.

    A terminal sends Ctrl-C to every process. Only this one handles it.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the new processes until `_process` starts
    try:
        # Spawned, not forked: CUDA cannot be used in a forked process.
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


def _process(rank: int, task: ScoringTask, num_ranks: int, folder: Path, messages: SimpleQueue[str]) -> None:
    """What a started process does. The first one leaves the scores in `folder`; one that fails sends a message."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # mp.spawn makes the kernel send SIGINT if the parent dies
    try:
        # Otherwise every process would use as many threads as there are cores.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_threads("auto", num_ranks))
        # Rendezvous through a file: a port could be taken by another program.
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=num_ranks)
        network = build_network(task)
        if weights_sha256(network.state_dict()) != task.identity["weights_sha256"]:
            # Every process reads the file itself; a training that runs meanwhile may have replaced it.
            raise UserError(f"{task.path}: was overwritten during its evaluation; evaluate it again")
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

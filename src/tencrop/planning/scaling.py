"""The model behind python -m tencrop.planning: the time of an all-reduce, of a step and of an epoch on N GPUs.

`bench/all_reduce.py` compares its all-reduce with one that it measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from tencrop.config import Link, PlanningConfig

# DDP starts to reduce a bucket of gradients as soon as it is full (Li et al. 2020, section 3.2); 25 MiB is its default
# size. The last bucket is full when the backward pass ends, so nothing hides it.
BUCKET_BYTES = 25 * 2**20
# Backward computes two products for each one of the forward pass: for the inputs and for the weights.
BACKWARD_FRACTION = 2 / 3


@dataclass(frozen=True)
class Scale:
    """What to expect on `num_gpus` GPUs. Times in seconds, all with the same number of images per GPU."""

    num_gpus: int
    num_nodes: int
    all_reduce_s: float
    exposed_s: float  # the part of it that the backward pass does not hide
    step_s: float
    images_per_s: float  # within an epoch
    efficiency: float  # images_per_s, as a fraction of num_gpus times that of one
    start_s: float  # of an epoch: its order, and the first batch
    epoch_s: float  # with its start, without validation
    cores_per_node: float  # that the loader needs
    read_bytes_per_s: float  # by one node


def all_reduce_seconds(num_bytes: float, num_ranks: int, *, bytes_per_s: float, latency_s: float) -> float:
    """Time of a ring all-reduce (Patarasu and Yuan 2009): 2 (n - 1) messages in turn, of 1/n of the bytes each.

    bytes_per_s: what each rank sends while it receives as much. latency_s: of a message without content.
    """
    num_messages = 2 * (num_ranks - 1)
    return num_messages * (num_bytes / num_ranks / bytes_per_s + latency_s)


def scale(config: PlanningConfig, num_gpus: int, *, order_s: float) -> Scale:
    """order_s: the time that each rank needs to compute the order of an epoch."""
    assert config.step_ms is not None and config.parameters is not None
    alone_s = config.step_ms / 1000
    gradient_bytes = 4 * config.parameters
    gpus_per_node = min(num_gpus, config.gpus_per_node)
    num_nodes = -(-num_gpus // config.gpus_per_node)
    link: Link = config.node_link if num_nodes == 1 else config.link
    all_reduce_s = all_reduce_seconds(
        gradient_bytes, num_gpus, bytes_per_s=1e9 * link.gb_per_s, latency_s=1e-6 * link.latency_us
    )
    last_bucket = min(1.0, BUCKET_BYTES / gradient_bytes)
    exposed_s = max(all_reduce_s * last_bucket, all_reduce_s - BACKWARD_FRACTION * alone_s)
    step_s = alone_s + exposed_s
    images_per_s = num_gpus * config.images_per_gpu / step_s
    node_images_per_s = gpus_per_node * config.images_per_gpu / step_s
    # With the cores that the loader needs, and no more, a batch takes as long as a step.
    start_s = order_s + step_s
    num_steps = config.num_images // (num_gpus * config.images_per_gpu)
    return Scale(
        num_gpus=num_gpus,
        num_nodes=num_nodes,
        all_reduce_s=all_reduce_s,
        exposed_s=exposed_s,
        step_s=step_s,
        images_per_s=images_per_s,
        efficiency=alone_s / step_s,
        start_s=start_s,
        epoch_s=num_steps * step_s + start_s,
        cores_per_node=node_images_per_s / config.loader_images_per_s,
        read_bytes_per_s=1000 * config.image_kb * node_images_per_s,
    )

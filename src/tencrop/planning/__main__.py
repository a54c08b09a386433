"""Print what a training on many GPUs is expected to reach: `python -m tencrop.planning step_ms=103 ...`."""

from signal import SIGINT

from tencrop.signals import exit_at_once

if __name__ == "__main__":
    exit_at_once(SIGINT)  # before all other imports

import sys
import time

from tencrop.cli.command import command
from tencrop.config import PlanningConfig, UserError
from tencrop.planning.scaling import BACKWARD_FRACTION, BUCKET_BYTES, Scale, scale
from tencrop.progress import duration, format_bytes
from tencrop.text_tables import aligned

HEAD = ["GPUs", "nodes", "all-reduce", "not hidden", "step", "images/s", "of linear", "epoch", "start of epoch"]
HEAD += ["loader cores", "reads"]


@command("planning", PlanningConfig)
def main(config: PlanningConfig) -> int:
    if config.step_ms is None or config.parameters is None:
        raise UserError(
            "step_ms, parameters: give both, as in step_ms=103 parameters=25557032; train.py ... plan=true measures"
            " the step, and python -m tencrop.complexity model=NAME counts the parameters"
        )
    if not config.gpus:
        raise UserError("gpus=[]: name at least one number of GPUs, as in gpus=[8]")
    if too_many := [number for number in config.gpus if number * config.images_per_gpu > config.num_images]:
        raise UserError(
            f"gpus={too_many[0]}: a step would take {too_many[0] * config.images_per_gpu:,} images, and an epoch has"
            f" {config.num_images:,}; give fewer GPUs or a smaller images_per_gpu"
        )
    order_s = _measure_order(config.num_images)
    rows = [_cells(scale(config, number, order_s=order_s)) for number in config.gpus]
    print("\n".join(aligned([HEAD, *rows])))
    print("\nassumptions:")
    print("".join(f"- {line}\n" for line in _assumptions(config, order_s)), end="")
    return 0


def _measure_order(num_images: int) -> float:
    # NumPy only now: --help and refused keys need none of it.
    import numpy as np

    from tencrop.data.sampling.sampler import epoch_order

    start = time.perf_counter()
    epoch_order(np.arange(num_images), seed=0, epoch=0)
    return time.perf_counter() - start


def _cells(expected: Scale) -> tuple[str, ...]:
    return (
        str(expected.num_gpus),
        str(expected.num_nodes),
        f"{1000 * expected.all_reduce_s:.2f} ms",
        f"{1000 * expected.exposed_s:.2f} ms",
        f"{1000 * expected.step_s:.1f} ms",
        f"{expected.images_per_s:,.0f}",
        f"{expected.efficiency:.0%}",
        duration(expected.epoch_s) if expected.epoch_s >= 60 else f"{expected.epoch_s:.1f} s",
        f"{expected.start_s:.2f} s",
        f"{expected.cores_per_node:.1f} a node",
        f"{format_bytes(expected.read_bytes_per_s)}/s a node",
    )


def _assumptions(config: PlanningConfig, order_s: float) -> list[str]:
    assert config.parameters is not None
    link, node_link = config.link, config.node_link
    return [
        f"weak scaling: {config.images_per_gpu} images per GPU, whose step takes {config.step_ms:g} ms on one GPU"
        " alone. Whether such a global batch learns as well is another question",
        f"gradients: {format_bytes(4 * config.parameters)} in float32 ({config.parameters:,} parameters), reduced once"
        " a step by a ring all-reduce: 2 (n - 1) messages of 1/n of them each. NCCL may choose a tree, which is faster"
        " among many nodes",
        f"links: {node_link.gb_per_s:g} GB/s and {node_link.latency_us:g} us between the GPUs of one node, which has"
        f" {config.gpus_per_node}; {link.gb_per_s:g} GB/s and {link.latency_us:g} us once there are several nodes."
        " GB/s is nccl-tests' bus bandwidth, as doctor.py prints it",
        f"the backward pass, {BACKWARD_FRACTION:.0%} of the step, hides all buckets of gradients but the last"
        f" ({BUCKET_BYTES / 2**20:.0f} MiB)",
        f"loader: a core delivers {config.loader_images_per_s:g} images/s; a node needs the cores and reads listed",
        f"store: {config.image_kb:g} kB an image, nothing kept in memory between epochs",
        f"start of an epoch: each rank computes the order of {config.num_images:,} samples ({order_s:.2f} s, measured"
        " now on a core of this machine), then loads a batch in the time of a step",
        "no rank is slower than the others; no validation, checkpoints or restarts",
    ]


if __name__ == "__main__":
    sys.exit(main())

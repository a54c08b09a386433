"""What Lightning and our bookkeeping cost: our fit beside a bare loop and timm's loop, on the same batches.

    python bench/step_time.py [--blocks 30] [--steps 10] experiment=lenet5_digits
    python bench/step_time.py model=resnet50 data=imagefolder data.root=DIR hardware=gpu1

All three train the same network in one process and take turns: after every --steps optimizer steps of fit(), a callback
lets each of the others take as many. So a slow minute of the machine affects all of them. The first two blocks warm
up. Printed: the median time per step, and minimum, quartiles and maximum of the ratios within a block. The bare loop
(loops.py) normalizes but augments nothing; the loop of timm does per step what its train.py does, from timm's parts.
Nothing is kept. With hardware.accelerator=gpu, blocks end when the device has finished.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tencrop.cli.command import command
from tencrop.config import Config, UserError, check_data, derive_batches
from tencrop.data.store.manifest import read_manifest

if TYPE_CHECKING:
    from loops import Loop

NUM_WARM_UP = 2  # blocks


@command("train", Config)
def compare(config: Config) -> int:
    if config.hardware.devices * config.hardware.nodes > 1:
        raise UserError("hardware.devices: this benchmark compares loops on one device; set hardware.devices=1")
    from loops import BareLoop, TimmLoop

    config.training.max_steps = (OPTIONS.blocks + NUM_WARM_UP) * OPTIONS.steps
    config.training.epochs = max(config.training.epochs or 0, 10**6)  # the schedule must not end before
    config.training.evaluate_every_epochs = 10**6  # a validation would count as part of the step after it
    batches, manifest = derive_batches(config), read_manifest(config.data.root, config.data.name)
    check_data(config, manifest)
    loops: dict[str, Loop] = {"bare loop": BareLoop(config, batches, manifest)}
    if batches.accumulate_grad_batches == 1:
        loops["timm's loop"] = TimmLoop(config, batches, manifest)
    times = time_blocks(config, batches, manifest, loops)
    for loop in loops.values():
        loop.close()
    print_table(config, {name: np.array(values)[NUM_WARM_UP:] for name, values in times.items()})
    return 0


def time_blocks(config: Config, batches: Any, manifest: Any, loops: dict[str, Loop]) -> dict[str, list[float]]:
    """Milliseconds per step of each loop, by block."""
    from loops import Timed, wait_for_device
    from pytorch_lightning import Callback

    from tencrop.training.fit import build, fit

    times: dict[str, list[float]] = {"fit": [], **{name: [] for name in loops}}

    class TakeTurns(Callback):
        start = 0.0

        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, classifier: Any, *_: Any) -> None:
            if not classifier.is_at_step_boundary or classifier.global_step % OPTIONS.steps:
                return
            wait_for_device()
            times["fit"].append((time.perf_counter() - self.start) * 1000 / OPTIONS.steps)
            for name, loop in loops.items():
                start = time.perf_counter()
                loop.run(OPTIONS.steps)
                times[name].append((time.perf_counter() - start) * 1000 / OPTIONS.steps)
            if len(times["fit"]) == OPTIONS.blocks + NUM_WARM_UP:
                raise Timed
            self.start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, suppress(Timed):
        fit(*build(config, batches=batches, manifest=manifest), run_dir=Path(folder), callbacks=[TakeTurns()])
    return times


def print_table(config: Config, times: dict[str, np.ndarray]) -> None:
    size, batch = config.augmentation.size, config.training.global_batch
    print(f"{config.model.name}, {size} px, batch {batch}, {len(times['fit'])} blocks of {OPTIONS.steps} steps")
    for name, values in times.items():
        print(f"{name:12s}{np.median(values):9.3f} ms a step")
    for name, values in times.items():
        if name != "fit":
            quartiles = np.quantile(times["fit"] / values, [0, 0.25, 0.5, 0.75, 1])
            least, low, median, high, most = quartiles
            difference = np.median(times["fit"] - values)
            print(
                f"fit / {name:12s}{median:7.3f} (quartiles {low:.3f} to {high:.3f}, all {least:.3f} to {most:.3f});"
                f" {difference:+.3f} ms a step"
            )


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--blocks", type=int, default=30, help="blocks of steps that are timed")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps in a block")
    return parser.parse_known_args(words)


OPTIONS, WORDS = parse(sys.argv[1:] if __name__ == "__main__" else [])

if __name__ == "__main__":
    sys.exit(compare(WORDS))

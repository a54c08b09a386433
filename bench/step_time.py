"""What Lightning and our bookkeeping cost: milliseconds a step in fit() and in a bare loop, on the same batches.

python bench/step_time.py experiment=lenet5_digits training.max_steps=400
python bench/step_time.py model=resnet50 data=imagefolder data.root=DIR hardware=gpu1 training.max_steps=200
Both read the same loader; half of training.max_steps warms up. Nothing is kept.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tencrop.cli.command import command
from tencrop.config import Batches, Config, UserError, check_data, derive_batches
from tencrop.data.store.manifest import read_manifest

NUM_TURNS = 3


@command("train", Config)
def main(config: Config) -> int:
    if config.training.max_steps is None or config.hardware.devices * config.hardware.nodes > 1:
        raise UserError("training.max_steps: say how many steps to time, on one device")
    batches, manifest = derive_batches(config), read_manifest(config.data.root, config.data.name)
    check_data(config, manifest)
    times: dict[str, list[float]] = {"fit": [], "bare loop": []}
    for _ in range(NUM_TURNS):
        times["bare loop"].append(time_bare_loop(config, batches, manifest))
        times["fit"].append(time_fit(config, batches, manifest))
    for name, values in times.items():
        print(f"{name:10s} {min(values):8.3f} ms a step (of {NUM_TURNS}; median {statistics.median(values):.3f})")
    print(f"fit / bare {min(times['fit']) / min(times['bare loop']):8.3f}")
    return 0


def time_fit(config: Config, batches: Batches, manifest: dict) -> float:
    from pytorch_lightning import Callback

    from tencrop.training.fit import build, fit

    max_steps = config.training.max_steps
    assert max_steps is not None

    half_way = max_steps // 2

    class Timer(Callback):
        start, end, half = 0.0, 0.0, half_way

        def on_train_batch_end(self, trainer, classifier, *_) -> None:
            if classifier.is_at_step_boundary and classifier.global_step in (self.half, classifier.total_steps):
                wait_for_device()
                self.start, self.end = self.end, time.perf_counter()

    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        fit(*build(config, batches=batches, manifest=manifest), run_dir=Path(folder), callbacks=[timer])
    return (timer.end - timer.start) * 1000 / (max_steps - timer.half)


def time_bare_loop(config: Config, batches: Batches, manifest: dict) -> float:
    from types import SimpleNamespace

    import torch

    from tencrop.config import accelerator_of
    from tencrop.models.factory import build_model
    from tencrop.training.classifier import Classifier
    from tencrop.training.data_module import DataModule

    device = torch.device("cuda" if accelerator_of(config.hardware) == "gpu" else "cpu")
    data = DataModule(config, batches)
    strategy = SimpleNamespace(root_device=device)
    trainer: Any = SimpleNamespace(global_step=0, global_rank=0, world_size=1, strategy=strategy)
    data.trainer = trainer
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=len(manifest["classes"]))
    parts = Classifier(
        config, model, statistics=manifest["statistics"], batches=batches, steps_per_epoch=data.steps_per_epoch
    ).to(device)
    optimizer = parts.configure_optimizers()
    max_steps = config.training.max_steps
    assert max_steps is not None
    loader, step, half, start = data.train_dataloader(), 0, max_steps // 2, 0.0
    while step < max_steps:
        trainer.global_step = step
        for number, batch in enumerate(loader):
            batch = data.transfer_batch_to_device(batch, device, 0)
            loss = torch.nn.functional.cross_entropy(parts.logits(parts.model, batch.images), batch.labels)
            (loss / batches.accumulate_grad_batches).backward()
            reset_groups(parts.model)
            if (number + 1) % batches.accumulate_grad_batches:
                continue
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step in (half, max_steps):
                wait_for_device()
                start, end = (time.perf_counter(), 0.0) if step == half else (start, time.perf_counter())
            if step == max_steps:
                break
    data.close()
    return (end - start) * 1000 / (max_steps - half)


def reset_groups(model) -> None:
    for layer in model.modules():
        if hasattr(layer, "num_filled"):
            layer.num_filled = 0


def wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())

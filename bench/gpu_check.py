"""What a machine with one GPU can show of what CPUs cannot: make gpu-check, or

    python bench/gpu_check.py [--accelerator cpu]

The tests marked gpu; a training interrupted by SIGUSR1 that ends with the weights of an undisturbed one: alone, by DDP
over NCCL with one rank, and by DDP over gloo with two ranks that share the GPU (NCCL refuses that); that no training
step waits for the device, and that each gets its batch by the copying stream and updates by a fused optimizer; that
compiled steps give the weights of eager ones; every protocol. Prints one table (Markdown) and exits with 1 where a row
failed, with 2 where there is no GPU. --accelerator cpu rehearses on the CPU, by gloo alone, what a CPU can show: not
the tests marked gpu, nor whether a step waits. The images are noise, made here; the package must be installed or on
PYTHONPATH with its C modules built, and ffcv is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
PROTOCOLS = sorted(path.stem for path in (ROOT / "conf" / "protocol").glob("*.yaml"))
NUM_STEPS_BEFORE_SIGNAL = 5
TIMEOUT_S = 120
COMPILE_TIMEOUT_S = 900  # torch.compile generates and compiles C++ on a CPU, Triton's code on a GPU
# a small network with BatchNorm; 24 images, 3 steps an epoch
RECIPE = [
    "experiment=null", "data=imagefolder", "model=resnet18_a", "+model.kwargs.width=0.25", "model.bn_group=4",
    "image_size=64", "short_side=72", "training.global_batch=8", "training.evaluate_every_epochs=5",
    "training.epochs=20", "training.ema_decay=0.9", "schedule=constant",
    "log_every_steps=1", "tracker=none", "deterministic=true", "allow_other_code=true", "hardware.workers=2",
]  # fmt: skip
# a rate at which rounding is not amplified
COMPILED = ["deterministic=false", "training.precision=fp32", "training.max_steps=3", "optimizer.lr=1e-3"]
MOST = 1e-3  # between weights of compiled and eager steps
AUGMENTED = ["augmentation=deit", "augmentation.mixing.mix_group=4", "augmentation.repeats=1", "deterministic=false"]


class Failed(Exception):
    """What a check found."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    accelerator = parser.parse_args().accelerator
    if accelerator == "gpu" and not torch.cuda.is_available():
        print("error: torch sees no GPU here; run this where there is one, or add --accelerator cpu", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name() if accelerator == "gpu" else "the CPU, a rehearsal"
    print(f"{device}; torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    print("| what | result | seconds |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        checks = list_checks(Path(folder), accelerator)
        results = [is_good(name, check) for name, check in checks.items()]  # all, after a failure too
    return 0 if all(results) else 1


def list_checks(folder: Path, accelerator: str) -> dict[str, Callable[[], str]]:
    """Name of each row -> what returns its result, or raises Failed."""
    words = [*RECIPE, f"data.root={folder}/prepared", f"hardware.accelerator={accelerator}"]
    # of three rows, a CPU shows another or a smaller part
    backend, place, augmented = "NCCL", ", one GPU,", "a training step waits for nothing"
    if accelerator == "cpu":
        backend, place, augmented = "gloo", "", "nine augmented steps"
    checks: dict[str, Callable[[], str]] = {
        "tests marked gpu": gpu_tests,
        "prepare 32 images": partial(prepare, folder, "data=imagefolder"),
        "one process: interrupted, resumed": partial(interrupted, folder, words, "alone"),
        f"one rank by {backend} (DDP): the same": partial(interrupted, folder, words, "one_rank"),
        f"two ranks{place} by gloo (DDP): the same": partial(
            interrupted, folder, [*words, "hardware.nodes=2"], "gloo", num_ranks=2
        ),
        augmented: partial(trained, [*words, *AUGMENTED, f"runs={folder}/sync", "training.max_steps=9"], "sync"),
        "three compiled steps, and three eager ones": partial(compiled, folder, [*words, *COMPILED]),
    }
    if accelerator == "cpu":
        checks.pop("tests marked gpu")
    for protocol in PROTOCOLS:
        sides = ["protocol.side=[72,80]"] if protocol == "crops_144" else []
        checks[f"protocol {protocol}"] = partial(
            evaluated, [*words, f"runs={folder}/whole_alone", f"protocol={protocol}", *sides]
        )
    return checks


def is_good(name: str, check: Callable[[], str]) -> bool:
    """Prints the row of a check."""
    start = time.perf_counter()
    try:
        result, good = check(), True
    except (Failed, subprocess.TimeoutExpired) as error:
        result, good = f"FAILED: {' '.join(str(error).split()).replace('|', '/')}", False
    print(f"| {name} | {result} | {time.perf_counter() - start:.1f} |", flush=True)
    return good


def gpu_tests() -> str:
    return run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]).splitlines()[-1]


def prepare(folder: Path, data: str) -> str:
    rng = np.random.default_rng(0)
    for split, num_images in (("train", 12), ("val", 4)):
        for name in ("a", "b"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(num_images):
                pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC)
                image.save(folder / "images" / split / name / f"{number}.jpg")
    run([sys.executable, "prepare.py", data, f"data.source={folder}/images", f"data.root={folder}/prepared"])
    return "done"


def interrupted(folder: Path, words: list[str], child: str, num_ranks: int = 1) -> str:
    """Trains undisturbed, and again with SIGUSR1 after some steps and the same command a second time."""
    weights, step = [], 0
    for kind in ("whole", "stopped"):
        runs = folder / f"{kind}_{child}"
        command = [*words, f"runs={runs}"]
        if kind == "stopped":
            step = stopped(runs, command, child, num_ranks)
        finish(start(command, child, num_ranks))
        (manifest,) = runs.rglob("manifest.json")
        result = json.loads(manifest.read_text())["result"]
        weights.append((result["weights_sha256"], result["ema_sha256"]))
    if weights[0] != weights[1]:
        raise Failed(f"interrupted after step {step}, it ended with other weights")
    return f"interrupted after step {step}, the same weights and EMA bit for bit"


def stopped(runs: Path, command: list[str], child: str, num_ranks: int) -> int:
    processes = start(command, child, num_ranks)
    deadline = time.monotonic() + TIMEOUT_S
    while num_rows(runs) < NUM_STEPS_BEFORE_SIGNAL and all(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise Failed(f"fewer than {NUM_STEPS_BEFORE_SIGNAL} steps in {TIMEOUT_S} s")
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    finish(processes, exit_code=75)
    rows = [json.loads(line) for path in runs.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
    return max(row["step"] for row in rows)


def num_rows(runs: Path) -> int:
    return sum(path.read_text().count('"train"') for path in runs.rglob("metrics.jsonl"))


def trained(words: list[str], child: str) -> str:
    finish(start(words, child))
    return "done"


def compiled(folder: Path, words: list[str]) -> str:
    states = []
    for mode in ("none", "default"):
        runs = folder / f"compile_{mode}"
        finish(start([*words, f"runs={runs}", f"training.compile={mode}"], "alone"), timeout_s=COMPILE_TIMEOUT_S)
        (checkpoint,) = runs.rglob("last.ckpt")
        states.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    eager, other = states
    if list(eager) != list(other):
        raise Failed("compiling has changed the names of the weights")
    worst = max((eager[name].double() - other[name].double()).abs().max().item() for name in eager if "." in name)
    if worst > MOST:
        raise Failed(f"weights differ by {worst:.1e}, more than {MOST:g}")
    return f"weights differ by at most {worst:.1e}"


def evaluated(words: list[str]) -> str:
    run([sys.executable, "evaluate.py", *words])
    return "done"


def run(command: list[str]) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    if result.returncode:
        raise Failed(f"exit code {result.returncode}: {(result.stderr or result.stdout)[-300:]}")
    return result.stdout


def start(words: list[str], child: str, num_ranks: int = 1) -> list[subprocess.Popen[str]]:
    """train.py, changed as `child` says (see below); several ranks as torchrun would start them, a node each."""
    processes = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    for rank in range(num_ranks):
        environment = dict(os.environ)
        if num_ranks > 1:
            environment |= {"TORCHELASTIC_RUN_ID": "check", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"RANK": str(rank), "GROUP_RANK": str(rank), "NODE_RANK": str(rank), "LOCAL_RANK": "0"}
            environment |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": "1"}
        command = [sys.executable, __file__, "--child", child, *words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))  # type: ignore[call-overload]
    return processes


def finish(processes: list[subprocess.Popen[str]], exit_code: int = 0, timeout_s: int = TIMEOUT_S) -> None:
    try:
        errors = [process.communicate(timeout=timeout_s)[1] for process in processes]
    finally:
        for process in processes:  # what has timed out would slow the checks that follow; nothing if it has ended
            process.kill()
    codes = [process.returncode for process in processes]
    if codes != [exit_code] * len(codes):
        raise Failed(f"exit codes {codes}, not {exit_code}: {errors[0][-300:]}")


def child(kind: str, words: list[str]) -> None:
    """train.py with: gloo, its ranks joined by gloo; one_rank, DDP even then; sync, no waiting in a step."""
    import tencrop.training.fit as training
    from tencrop.training import data_module

    ddp = training._ddp
    if kind == "gloo":

        def by_gloo(*, exactly: bool):
            strategy = ddp(exactly=exactly)
            strategy._process_group_backend = "gloo"
            return strategy

        training._ddp = by_gloo
    elif kind == "one_rank":
        trainer = training.Trainer
        training.Trainer = lambda **options: trainer(**options | {"strategy": ddp(exactly=True)})  # type: ignore[misc, assignment]
    elif kind == "sync" and torch.cuda.is_available():
        step, copied_ahead, copies = training.Classifier.training_step, data_module.copied_ahead, []

        def counted(*args, **options):
            copies.append(args)
            return copied_ahead(*args, **options)

        data_module.copied_ahead = counted

        def without_waiting(self, batch, batch_idx: int) -> None:
            # the first steps wait: libraries are loaded, memory is taken
            torch.cuda.set_sync_debug_mode("error" if self.global_step > 2 else "default")
            step(self, batch, batch_idx)
            torch.cuda.set_sync_debug_mode("default")
            if not copies or not all(group["fused"] for group in self.optimizers().param_groups):
                raise SystemExit("no copying stream, or no fused optimizer")

        training.Classifier.training_step = without_waiting  # type: ignore[method-assign]
    sys.argv = ["train.py", *words]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())

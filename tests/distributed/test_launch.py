"""Launched ranks end together, with one sentence and the exit code of the rank that failed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tencrop.data.store.manifest import open_split
from tencrop.training.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]

# each rank joins the others, says its process, and waits for them at a barrier that those who fail never reach
PROGRAM = """
import errno, os, sys, time
from tencrop.config import Config, UserError
from tencrop.cli.command import command

@command("train", Config)
def main(config):
    import torch.distributed as dist
    from tencrop.distributed.launch import launch_ranks
    with launch_ranks(3):
        rank = int(os.environ["LOCAL_RANK"])
        dist.init_process_group("gloo", rank=rank, world_size=3)
        os.write(1, f"{os.getpid()}\\n".encode())
        dist.barrier()
        if rank in failing:
            exec(fault)
        dist.barrier()
        dist.destroy_process_group()

failing, fault = eval(sys.argv.pop()), sys.argv.pop()
main()
"""
FULL = 'raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")'
FAULTS = {
    "nothing": ("", "[]", 0, ""),
    "a mistake seen by one": ('raise UserError("class0/000.png: broken")', "[2]", 2, "error: class0/000.png: broken\n"),
    "a mistake seen by all": ('raise UserError("seen by all")', "[0, 1, 2]", 2, "error: seen by all\n"),
    "a full disk": (FULL, "[1]", 2, "error: the disk is full (last.ckpt); make room, or name another file or folder\n"),
    "a full disk, the first": (FULL, "[0]", 2, "error: the disk is full (last.ckpt); make room, or name another"),
    "an interruption": ("sys.exit(75)", "[1]", 75, ""),
    "a bug": ("1 / 0", "[1]", 1, "Traceback"),
    "a rank that is killed": ("os.kill(os.getpid(), 9)", "[1]", 1, "error: rank 1 was ended by signal 9\n"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_ranks_end_together_with_one_sentence(case):
    fault, failing, exit_code, words = FAULTS[case]
    command = [sys.executable, "-c", PROGRAM, "experiment=lenet5_digits", fault, failing]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment())
    assert result.returncode == exit_code, result.stderr
    assert result.stderr.startswith(words) and result.stderr.count("error: ") + result.stderr.count("Traceback") <= 1
    processes = result.stdout.split()
    assert len(processes) == 3 and not any(Path("/proc", process).exists() for process in processes)


def events(tracking: Path) -> bytes:
    """The content of TensorBoard's event files, which hold the metrics' names as plain bytes."""
    return b"".join(path.read_bytes() for path in tracking.glob("events.*"))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


def train(root: Path, folder: Path, *overrides: str, at_exit: signal.Signals | None = None) -> subprocess.Popen:
    """train.py with two processes on the photographs; `at_exit`: it sends itself this signal when it has ended."""
    variables = environment()
    if at_exit is not None:
        (folder / "sitecustomize.py").write_text(
            f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(at_exit)}))\n"
        )
        variables["PYTHONPATH"] += f":{folder}"
    recipe = ["data=imagefolder", f"data.root={root}", "model=timm", "model.name=test_resnet", "model.bn_group=4"]
    recipe += ["image_size=32", "short_side=32", "training.global_batch=8", "training.precision=fp32"]
    recipe += ["training.minival_fraction=0.25", "hardware=ddp_cpu2", "tracker=none"]
    recipe += ["log_every_steps=1", f"runs={folder}", "schedule=constant", "allow_other_code=true", *overrides]
    command = [sys.executable, "train.py", *recipe]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=-1, stderr=-1, text=True)


def test_a_run_of_two_processes_is_interrupted_and_continues(prepared_photos, tmp_path):
    process = train(prepared_photos, tmp_path, "training.epochs=1000")
    metrics = wait_for(tmp_path, "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 75, errors
    assert "interrupted after step" in errors and "Traceback" not in errors
    checkpoint = metrics.parent / "checkpoints" / "last.ckpt"
    step = read_checkpoint(checkpoint)["tencrop"]["step"]
    process = train(prepared_photos, tmp_path, "training.epochs=1000")
    while read_checkpoint(checkpoint)["tencrop"]["step"] == step and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=900)
    assert process.returncode == 75


def test_a_signal_in_the_final_evaluation_exits_with_75_and_the_same_command_evaluates(prepared_photos, tmp_path):
    options = ("training.epochs=1", "hardware=cpu", "hardware.workers=1", "tracker=tensorboard")
    process = train(prepared_photos, tmp_path, *options)
    manifest = wait_for(tmp_path, "manifest.json", process)
    tracking = manifest.parent / "tracking"
    while '"status": "complete"' not in manifest.read_text() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 75 and errors.endswith("interrupted; the same command continues\n"), errors
    assert not (manifest.parent / "report.html").exists()
    assert b"center/top1_error" not in events(tracking)
    process = train(prepared_photos, tmp_path, *options, at_exit=signal.SIGUSR1)
    assert "already complete" in process.communicate(timeout=900)[0] and process.returncode == 0
    assert events(tracking).count(b"center/top1_error") == 1
    num_files = len(list(tracking.glob("events.*")))
    process = train(prepared_photos, tmp_path, *options, at_exit=signal.SIGTERM)
    assert "already complete" in process.communicate(timeout=900)[0] and process.returncode == 0
    assert len(list(tracking.glob("events.*"))) == num_files, "what is there is not logged again"


def wait_for(folder: Path, name: str, process: subprocess.Popen) -> Path:
    while process.poll() is None:
        if found := list(folder.rglob(name)):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(process.communicate()[1])


def test_an_image_that_only_the_second_rank_evaluates(prepared_photos, tmp_path):
    root = Path(shutil.copytree(prepared_photos, tmp_path / "data"))
    split = open_split(root, "val")
    number = split.num_samples - 1
    with open(root / "val.beton", "r+b") as file:
        file.seek(int(split.beton.pointers[number]) + 2)
        file.write(bytes(int(split.beton.payload_bytes[number]) - 2))
    process = train(root, tmp_path / "runs", "training.epochs=1")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert split.names(number) in line and "Traceback" not in errors

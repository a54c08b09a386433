"""train.py plan=true: what it prints, and where it is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tencrop.commands import plan as planning
from tencrop.commands.evaluate import main as evaluate
from tencrop.commands.train import main as train
from tencrop.config import UserError, derive_batches
from tencrop.records.probes import SavedProbe, read_probe, read_probes, recipe_hash
from tencrop.training import probe as probing
from tencrop.training.probe import Probe, Timing

ROOT = Path(__file__).parents[2]
NETWORK = [
    "data=imagefolder", "model=timm", "model.name=test_resnet", "model.bn_group=2", "image_size=32", "short_side=32",
    "training.global_batch=8", "hardware=cpu", "hardware.workers=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # measurements are kept in runs/plans


def lines_of(config, monkeypatch, capsys, *, loader_s, step_s, both_s):
    loader, step, both = (Timing(seconds, 10) for seconds in (loader_s, step_s, both_s))
    measured = Probe(loader, step, both, peak_memory_bytes=2_000_000_000, steps_per_epoch=5_000, total_steps=450_000)
    monkeypatch.setattr(planning, "probe", lambda *_, **__: measured)
    monkeypatch.setattr(planning, "num_granted_cores", lambda: 16)
    splits = {
        "train": {"num_samples": 1_000, "beton_bytes": 100_000_000},
        "val": {"num_samples": 10, "beton_bytes": 1_000},
    }
    assert planning.plan(config, derive_batches(config), {"splits": splits}) == 0
    return capsys.readouterr().out.splitlines()


def test_the_arithmetic_of_a_plan(composed, monkeypatch, capsys):
    config = composed("model=resnet50", "hardware=cpu", "experiment=null", "hardware.workers=4")
    said = lines_of(config, monkeypatch, capsys, loader_s=0.1, step_s=0.2, both_s=0.25)
    assert "256 images a step and device" in said[1] and said[1].endswith("4 loader threads")
    rows = [line.split() for line in said]
    assert ["both", "together", "1,024", "250.0", "10"] in rows
    # 5,000 x 0.25 s; 450,000 x 0.25 s = 31.25 h; 256 images of 100 kB in 0.25 s
    assert any("20 min 50 s an epoch of 5,000 steps; 31 h 15 min for all 450,000 steps" in line for line in said)
    assert any("31.2 device-hours on 1 device" in line for line in said)
    assert any(line.endswith("a device reads 102 MB/s of it") for line in said)
    assert any("bound by   the step: the loader alone is 2.0 times as fast; together" in line for line in said)
    # a device takes 1,280 images/s and a thread delivers 640: two cores for each device
    assert ["1", "1,280", "2.0", "25", "h", "0", "min", "25"] in rows
    assert ["8", "10,240", "16.0", "3", "h", "7", "min", "25"] in rows


def kept() -> list[SavedProbe]:
    broken: list[UserError] = []
    found = read_probes([Path("runs")], broken.append)
    assert not broken
    return found


def test_the_time_of_both_together_is_kept(composed, monkeypatch, capsys):
    config = composed("model=resnet50", "hardware=cpu", "experiment=null", "hardware.devices=2")
    lines_of(config, monkeypatch, capsys, loader_s=0.1, step_s=0.2, both_s=0.25)
    (probe,) = kept()
    assert probe == SavedProbe(recipe_hash(config), planning._device_kind(config), 2, 0.25, 450_000)
    assert probe.device_hours == 62.5  # 450,000 x 0.25 s on both devices
    lines_of(config, monkeypatch, capsys, loader_s=0.1, step_s=0.2, both_s=0.5)
    assert [one.seconds_per_step for one in kept()] == [0.5]


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(composed, monkeypatch, capsys):
    Path("runs").touch()
    config = composed("model=resnet50", "hardware=cpu", "experiment=null")
    with pytest.raises(UserError, match=r"runs/plans/.*json: cannot be written .*runs=DIR"):
        lines_of(config, monkeypatch, capsys, loader_s=0.1, step_s=0.2, both_s=0.25)
    assert not capsys.readouterr().out


def test_the_loader_may_be_what_bounds(composed, monkeypatch, capsys):
    config = composed("model=resnet50", "hardware=cpu", "experiment=null")
    said = lines_of(config, monkeypatch, capsys, loader_s=0.9, step_s=0.3, both_s=0.95)
    assert "bound by   the loader: the step alone is 3.0 times as fast" in said


def test_numbers_of_devices_that_the_recipe_does_not_allow_are_named(composed, monkeypatch, capsys):
    config = composed("experiment=resnet18_tiny10", "hardware=cpu")  # groups of 64 of a batch of 64
    said = lines_of(config, monkeypatch, capsys, loader_s=1, step_s=1, both_s=1)
    assert "a global batch of 64 cannot be shared by 2, 4, 8 devices in this recipe" in said


def test_the_command_prints_a_plan_and_keeps_the_time_per_step(prepared_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probing, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(probing, "MAX_STEPS", 1)
    with pytest.raises(SystemExit) as stop:
        train([*NETWORK, f"data.root={prepared_photos}", "plan=true"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "bound by" in said and "assumptions:" in said
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == tmp_path / "runs" / "plans" and f"runs/plans/{file.name}: kept for report.py" in said
    probe = read_probe(file)
    assert probe.num_devices == 1 and probe.seconds_per_step > 0 and probe.num_steps > 0
    assert probe.device.endswith(("core", "cores")) and file.name.startswith(f"{probe.recipe}-")
    torch.use_deterministic_algorithms(False)


def test_evaluate_refuses_it(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate(["experiment=lenet5_digits", "plan=true"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: plan=true: only train.py plans a training; leave it out\n"


def test_several_processes_are_refused_before_torch_is_imported():
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    program = (
        "import sys, tencrop.commands.train as train\n"
        "try: train.main(['experiment=lenet5_digits', 'plan=true'])\n"
        "finally: assert not {'torch', 'timm'} & sys.modules.keys()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: plan=true: one process measures one device, but torchrun started 2;")

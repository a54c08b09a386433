"""Versions, compiled modules and GPUs, planted."""

import dataclasses
from typing import Any

import pytest

from tencrop.config import Hardware
from tencrop.doctor import software
from tencrop.doctor.software import Gpus, judge_gpus, judge_versions, locked_versions, missing_modules, read_gpus

INSTALLED = {
    "python": "3.11.7",
    "torch": "2.9.0+cu126",
    "numpy": "2.1.0",
    "timm": "1.0.15",
    "pytorch-lightning": "2.6.6",
}
H100 = Gpus("550.54", "12.6", ("H100",) * 8, (79 << 30,) * 8, (80 << 30,) * 8)


def hardware(*, accelerator: Any = "gpu", devices: int = 8, nodes: int = 1) -> Hardware:
    return Hardware(accelerator, devices, nodes, workers="auto", max_micro_batch=None)


def states(found) -> list[str]:
    assert all(finding.remedy for finding in found if finding.state != "ok")
    return [finding.state for finding in found]


def test_versions():
    assert states(judge_versions(INSTALLED, {"torch": ["2.9.0"], "numpy": ["2.0.9", "2.1.0"]}, [])) == ["ok"]
    found = judge_versions(INSTALLED, {"torch": ["2.8.0"]}, [])
    assert states(found) == ["ok", "warning"] and "torch 2.9.0+cu126 instead of 2.8.0" in found[1].text
    found = judge_versions(INSTALLED, {}, ["_decode"])
    assert states(found) == ["ok", "error"] and "_decode" in found[1].text


def test_the_lock_names_a_package_once_for_each_python(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=x\nnumpy==2.5.5 ; y\nTorch==2.9.0+cu126\n"
    )
    assert locked_versions(lock) == {"numpy": ["2.4.6", "2.5.5"], "torch": ["2.9.0"]}
    assert locked_versions(tmp_path / "none") == {}


def test_a_compiled_module_that_is_missing_is_found(monkeypatch):
    assert missing_modules() == []
    monkeypatch.setattr(software, "COMPILED", ("_decode", "_nothing"))
    assert missing_modules() == ["_nothing"]


@pytest.mark.parametrize(
    ("changed", "state", "word"),
    [
        ({}, ["ok"], "8 x H100, driver 550.54"),
        ({"driver": None}, ["error"], "no NVIDIA driver"),
        ({"cuda": None}, ["error"], "built for the CPU"),
        ({"names": ()}, ["error"], "hardware.devices=8, but torch (CUDA 12.6) sees 0 GPUs"),
        ({"names": ("H100",) * 7}, ["error"], "sees 7 GPUs"),
        ({"names": (*("H100",) * 7, "A100")}, ["ok", "warning"], "they differ"),
        ({"free_bytes": (*(79 << 30,) * 7, 40 << 30)}, ["ok", "warning"], "GPU 7: 42.9 GB of 85.9 GB are in use"),
    ],
)
def test_gpus(changed, state, word):
    found = judge_gpus(dataclasses.replace(H100, **changed), hardware())
    assert states(found) == state and word in found[-1].text


def test_a_machine_without_gpus_is_fine_for_training_on_its_cpu():
    none = Gpus(None, None, ())
    assert states(judge_gpus(none, hardware(accelerator="auto", devices=1))) == ["ok"]
    assert states(judge_gpus(H100, hardware(accelerator="cpu"))) == ["ok"]
    assert states(judge_gpus(none, hardware(accelerator="auto"))) == ["error"]


def test_the_driver_is_read_from_proc(tmp_path):
    version = tmp_path / "version"
    for kind in ("", " for x86_64"):
        version.write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module{kind}  550.54.15  Release Build\n")
        assert read_gpus(version).driver == "550.54.15"
    assert read_gpus(tmp_path / "none").driver is None

"""The recipe's batch on every hardware, or a refusal with the arithmetic."""

from types import SimpleNamespace

import pytest

from tencrop.config import Batches, Hardware, UserError, accelerator_of, derive_batches, num_threads, num_workers
from tencrop.config.launcher import PTY


def layout(composed, *overrides):
    return derive_batches(composed(*overrides))


def test_one_device_takes_the_whole_batch_in_ghost_groups(composed):
    assert layout(composed, "hardware=gpu1") == Batches(1, 256, 256, 1, "ghost", 8)


def test_eight_devices_take_one_group_each(composed):
    assert layout(composed, "hardware=gpu8") == Batches(8, 32, 32, 1, "ghost", 1)


def test_a_small_device_accumulates_whole_groups(composed):
    assert layout(composed, "hardware=gpu1", "hardware.max_micro_batch=100") == Batches(1, 256, 64, 4, "ghost", 2)


def test_without_batch_norm_any_micro_batch_is_allowed(composed):
    overrides = ("experiment=lenet5_digits", "hardware=ddp_cpu2", "hardware.max_micro_batch=5")
    assert layout(composed, *overrides) == Batches(2, 16, 4, 4, "none", 1)


def test_a_group_over_several_gpus_is_synchronized(composed):
    assert layout(composed, "hardware=gpu8", "model.bn_group=256") == Batches(8, 32, 32, 1, "sync", 1)


MIXED = ["augmentation.mixing.mixup_alpha=0.2", "augmentation.mixing.mix_group=64"]


def test_mixing_groups_are_not_split(composed):
    assert layout(composed, "hardware=gpu1", "hardware.max_micro_batch=100", *MIXED).micro_batch == 64
    overrides = ("model.bn_group=32", "hardware.max_micro_batch=200", "augmentation.mixing.mix_group=128")
    assert layout(composed, "hardware=gpu1", *MIXED[:1], *overrides) == Batches(1, 256, 128, 2, "ghost", 4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.global_batch=250", "hardware=gpu8"], r"250 / 8 = 31.25.*a batch of 248 or 256"),
        (
            ["hardware=gpu8", "hardware.nodes=4", "training.global_batch=240"],
            r"among \[1, .* 30, 60\] or a batch of 224",
        ),
        (["hardware=gpu8", "hardware.nodes=3"], "choose a number of hardware.nodes that divides it, or a batch of 240"),
        (["hardware=ddp_cpu2", "model.bn_group=256"], "for GPUs only"),
        (["hardware.max_micro_batch=20"], "raise it to at least 32"),
        (["hardware=gpu8", "model.bn_group=64", "hardware.max_micro_batch=16"], "accumulation cannot enlarge a group"),
        (["hardware=gpu1", "model.bn_group=48"], "use fewer devices, or a bn_group that divides"),
        (["hardware=gpu1", "model.bn_group=512"], "model.bn_group=512"),
        (["hardware=gpu8", *MIXED], "mix_group=64: 256 / 8 devices = 32 samples per device are not a whole number"),
        (["hardware=gpu1", "hardware.max_micro_batch=40", *MIXED], "raise it to at least 64"),
    ],
)
def test_an_impossible_layout_is_refused_with_its_arithmetic(composed, overrides, words):
    with pytest.raises(UserError, match=words):
        layout(composed, *overrides)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, "gpu"),
        ("0", "gpu"),
        ("0,-1", "gpu"),
        ("MIG-1", "gpu"),
        ("", "cpu"),
        ("-1,0", "cpu"),
        ("NoDevFiles", "cpu"),
    ],
)
def test_gpus_that_cuda_hides_do_not_count(monkeypatch, visible, expected):
    monkeypatch.setattr(
        "tencrop.config.batches.Path", lambda _: SimpleNamespace(exists=lambda: True)
    )  # NVIDIA's driver is loaded
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert accelerator_of(Hardware("auto", 1, 1, "auto", None)) == expected


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "tencrop"}
SRUN |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, 2), (SRUN, 5), (TORCHRUN, 1), (SRUN | TORCHRUN, 1), (SRUN | {"SLURM_JOB_NAME": "bash", PTY: "0"}, 1)],
    ids=["no launcher", "srun", "torchrun in a batch job", "torchrun under srun", "train.py in an interactive job"],
)
def test_processes_share_the_cores_of_their_task_unless_srun_gave_each_its_own(monkeypatch, variables, expected):
    monkeypatch.setattr("tencrop.config.batches.num_granted_cores", lambda: 9)
    for name in {*TORCHRUN, *SRUN, PTY, "SLURM_CPUS_PER_TASK"}:
        monkeypatch.delenv(name, raising=False)
    assert num_threads("auto") == 9 and num_threads("auto", 4) == 2 and num_threads("auto", 10) == 1
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if variables:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert num_threads("auto", 4) == expected and num_threads(3, 4) == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4(x2)")
    with pytest.raises(UserError, match=r"SLURM_CPUS_PER_TASK=4\(x2\): not a number of cores"):
        num_threads("auto")


def test_ranks_that_train_py_starts_in_a_batch_job_share_its_cores(monkeypatch, composed):
    """sbatch sets SLURM_NTASKS and no step: the loader's threads and torch's of 8 ranks are 64 together, not 512."""
    for name in {*TORCHRUN, *SRUN}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert num_workers(composed("hardware=gpu8").hardware) == num_threads("auto", 8) == 8

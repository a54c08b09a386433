"""Who started the processes, from the variables that srun and torchrun set; half a set is refused."""

import os

import pytest
from pytorch_lightning.plugins.environments import SLURMEnvironment

from tencrop.config import UserError
from tencrop.config.launcher import check_launch, is_first_process, launched
from typed import present

FIVE = {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
TORCHRUN = FIVE | {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8"}
BATCH = {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "tencrop"}
BATCH |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
SRUN = BATCH | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "9"}
STEP = "SLURM_STEP_TASKS_PER_NODE"
PTY = {"SLURM_PTY_PORT": "40000"}
ONE = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
SHELL = BATCH | {"SLURM_STEP_ID": "4294967290"}  # salloc's interactive step
ALL = {
    *TORCHRUN,
    *SRUN,
    *PTY,
    STEP,
    "NODE_RANK",
    "GROUP_RANK",
    "JSM_NAMESPACE_RANK",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TENCROP_PIPE",
    "SLURM_NNODES",
}
REFUSED = {
    "nobody": ({}, "hardware=nodes2x8", "nodes=2: start it under srun or torchrun, 8 processes on each"),
    "no srun": (BATCH, "hardware=nodes2x8", "nodes=2: start it under srun or torchrun"),
    "too many": (SRUN, "hardware=gpu8", "nodes = 8: 16 processes were started by srun"),
    "one": (
        BATCH | {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"},
        "hardware=gpu8",
        "1 processes were started",
    ),
    "too few": (TORCHRUN | {"WORLD_SIZE": "8"}, "hardware=nodes2x8", "nodes = 16: 8 processes were started by torch"),
    "other nodes": (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "hardware=nodes2x8", "torchrun started 4 processes on each"),
    "one node": (SRUN | {STEP: "16"}, "hardware=nodes2x8", "devices=8: srun started 16 processes on each node"),
    "uneven nodes": (SRUN | {STEP: "12,4"}, "hardware=nodes2x8", "devices=8: srun started 12,4 tasks on"),
    "a part of the allocation": (
        SRUN | ONE | {STEP: "1"},
        "hardware=nodes2x8",
        "nodes = 16: 1 processes were started",
    ),
}
# each with hardware=cpu: what one process alone is told to unset
LEFT_OVER = {
    "another's rank": ({"RANK": "1"}, "RANK=1: .* without LOCAL_RANK, WORLD_SIZE, .*; unset RANK, or"),
    "a place": ({"LOCAL_RANK": "1", "RANK": "0"}, "LOCAL_RANK=1: .*; unset RANK LOCAL_RANK, or"),
    "a machine": ({"NODE_RANK": "1"}, "NODE_RANK=1: .*; unset NODE_RANK,"),
    "a group": ({"GROUP_RANK": "2"}, "GROUP_RANK=2: .*; unset GROUP_RANK,"),
    "jsrun's": ({"JSM_NAMESPACE_RANK": "1"}, "JSM_NAMESPACE_RANK=1: .*; unset JSM_NAMESPACE_RANK,"),
    "a number of processes": ({"WORLD_SIZE": "4", "RANK": "0"}, "WORLD_SIZE=4: .*; unset RANK WORLD_SIZE,"),
    "no number": ({"RANK": "first"}, "RANK=first: .*; unset RANK,"),
    "no port": (
        {n: TORCHRUN[n] for n in TORCHRUN if n != "MASTER_PORT"},
        "TORCHELASTIC_RUN_ID=x: .* without MASTER_PORT",
    ),
    "a rank too high": (FIVE | {"WORLD_SIZE": "1"}, "RANK=9: 1 processes have ranks 0 to 0; .*, unset RANK LOCAL_RANK"),
    "no longer in a step": ({"SLURM_PROCID": "3"}, "SLURM_PROCID=3: .* without SLURM_STEP_ID, .*; unset SLURM_PROCID,"),
    "half a step": ({"SLURM_STEP_ID": "0"}, "SLURM_STEP_ID=0: .* without SLURM_PROCID, .*; unset SLURM_STEP_ID,"),
    "a shell's": (
        SHELL | {"SLURM_PROCID": "2"},
        "SLURM_PROCID=2: .* not a step of srun; unset SLURM_STEP_ID SLURM_PROCID,",
    ),
    "a job named bash": (
        SRUN | PTY | {"SLURM_JOB_NAME": "bash"},
        "SLURM_PROCID=9: .* a job named bash is taken for a shell",
    ),
    "a shell within torchrun": (
        TORCHRUN,
        "16 processes were started by torchrun; .*, unset TORCHELASTIC_RUN_ID RANK LOC",
    ),
    "a shell within srun": (SRUN, "16 processes were started by srun; .*, unset SLURM_STEP_ID SLURM_PROCID"),
}


@pytest.fixture
def started(monkeypatch):
    """started({...}): with these variables and no launcher's others."""

    def start(variables: dict[str, str]) -> None:
        for name in ALL:
            monkeypatch.setenv(name, "")  # so that what check_launch takes out comes back
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize("case", REFUSED)
def test_processes_that_do_not_match_the_hardware_are_refused(case, started, composed):
    variables, hardware, words = REFUSED[case]
    started(variables)
    with pytest.raises(UserError, match=words):
        check_launch(composed(hardware).hardware)


def test_processes_that_match_the_hardware_are_accepted(started, composed):
    others = {"WORLD_SIZE": "16", "MASTER_ADDR": "node0", "RANK": "0"}  # that batch scripts export
    for variables, launcher in (
        (TORCHRUN, "torchrun"),
        (FIVE | {"LOCAL_WORLD_SIZE": "8"}, "torchrun"),
        (SRUN, "srun"),
        (SRUN | others, "srun"),
        (SRUN | {STEP: "8(x2)"}, "srun"),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, "srun"),  # srun typed in salloc
        (SRUN | PTY, "srun"),
        ({name: SRUN[name] for name in SRUN if "PER_NODE" not in name} | {STEP: "8(x2)"}, "srun"),
        (SRUN | FIVE, "srun"),
    ):
        started(variables)
        check_launch(composed("hardware=nodes2x8").hardware)
        assert launched() == (launcher, 16, 8) and not is_first_process()
        assert ("RANK" in os.environ) == (launcher == "torchrun")  # Lightning would read it first
    bash = SRUN | PTY | {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}
    alone = {"RANK": "0", "WORLD_SIZE": "1", "NODE_RANK": "0"}
    for variables in ({}, BATCH, bash, SHELL, SRUN | PTY | ONE, {"LOCAL_RANK": "0"}, alone):
        for hardware in ("hardware=gpu8", "hardware=cpu"):
            started(variables)
            check_launch(composed(hardware).hardware)
            assert launched() is None and is_first_process() and not {"RANK", "LOCAL_RANK"} & os.environ.keys()


def test_a_step_of_one_task_in_a_larger_allocation_is_one_process(started, composed):
    started(BATCH | ONE | {"SLURM_STEP_ID": "0", STEP: "1", "SLURM_NNODES": "2"})
    check_launch(composed("hardware=cpu").hardware)
    assert launched() == ("srun", 1, 1)
    SLURMEnvironment(auto_requeue=False).validate_settings(num_devices=1, num_nodes=1)


@pytest.mark.parametrize("case", LEFT_OVER)
def test_left_over_variables_are_refused_with_what_to_unset(case, started, composed):
    variables, words = LEFT_OVER[case]
    started(variables)
    with pytest.raises(UserError, match=words):
        check_launch(composed("hardware=cpu").hardware)


def test_a_rank_started_by_train_py_ignores_launchers(started, composed):
    own = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    reader, writer = os.pipe()
    started(SHELL | own | {"TENCROP_PIPE": f"{writer} {os.getppid()}"})
    check_launch(composed("hardware=ddp_cpu2").hardware)
    assert launched() is None and not is_first_process()
    for stray in ("", "1", "first 1", f"{writer} 1", f"{writer} {os.getpid()}", f"999999 {os.getppid()}"):
        started(own | {"TENCROP_PIPE": stray})
        with pytest.raises(UserError, match=f"TENCROP_PIPE={stray}: .*; unset TENCROP_PIPE"):
            check_launch(composed("hardware=ddp_cpu2").hardware)
    started({"TENCROP_PIPE": f"{writer} {os.getppid()}"})  # without a rank
    with pytest.raises(UserError, match="unset TENCROP_PIPE"):
        check_launch(composed("hardware=cpu").hardware)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_rank_0_is_decided_by_the_recognized_launcher(launcher, started):
    own, other = ("RANK", "SLURM_PROCID") if launcher is TORCHRUN else ("SLURM_PROCID", "RANK")
    for rank in ("0", "1"):  # torchrun under srun, and the other way round
        started(SRUN | launcher | {own: rank, other: str(1 - int(rank)), "LOCAL_RANK": "0"})
        assert present(launched()).launcher == ("torchrun" if launcher is TORCHRUN else "srun")
        assert is_first_process() == (rank == "0")

"""Who started the processes, from the variables that srun and torchrun set."""

import pytest

from tencrop.config import UserError
from tencrop.config.launch import check_launch, is_first_process, launched

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "9", "LOCAL_RANK": "1"}
BATCH = {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "tencrop"}
SRUN = BATCH | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "9"}
REFUSED = {
    "nobody": ({}, "hardware=nodes2x8", "nodes=2: start it under srun or torchrun, 8 processes on each"),
    "no srun": (BATCH, "hardware=nodes2x8", "nodes=2: start it under srun or torchrun"),
    "too many": (SRUN, "hardware=gpu8", "nodes = 8: 16 processes were started by srun"),
    "one": (SRUN | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}, "hardware=gpu8", "1 processes were started"),
    "too few": (TORCHRUN | {"WORLD_SIZE": "8"}, "hardware=nodes2x8", "nodes = 16: 8 processes were started by torch"),
    "other nodes": (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "hardware=nodes2x8", "torchrun started 4 processes on each"),
    "unsaid": ({name: SRUN[name] for name in SRUN if "PER_NODE" not in name}, "hardware=nodes2x8", "ntasks-per-node=8"),
}


@pytest.fixture
def started(monkeypatch):
    """started({...}): with these variables and no launcher's others."""

    def start(variables: dict[str, str]) -> None:
        for name in {*TORCHRUN, *SRUN, "NODE_RANK"}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize("case", REFUSED)
def test_other_processes_than_the_hardware_says_are_refused(case, started, composed):
    variables, hardware, words = REFUSED[case]
    started(variables)
    with pytest.raises(UserError, match=words):
        check_launch(composed(hardware).hardware)


def test_processes_as_the_hardware_says(started, composed):
    for variables, launcher in ((TORCHRUN, "torchrun"), (SRUN, "srun")):
        started(variables)
        check_launch(composed("hardware=nodes2x8").hardware)
        assert launched() == (launcher, 16, 8) and not is_first_process()
    for variables in ({}, BATCH, SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}):
        started(variables)
        check_launch(composed("hardware=gpu8").hardware)
        assert launched() is None and is_first_process()


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_one_process_is_the_first_whatever_another_launcher_calls_it(launcher, started):
    own, other = ("RANK", "SLURM_PROCID") if launcher is TORCHRUN else ("SLURM_PROCID", "RANK")
    for rank in ("0", "1"):  # torchrun under srun, and the other way round
        started(SRUN | launcher | {own: rank, other: str(1 - int(rank)), "LOCAL_RANK": "0"})
        assert launched().launcher == ("torchrun" if launcher is TORCHRUN else "srun")
        assert is_first_process() == (rank == "0")

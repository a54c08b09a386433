"""The files of slurm/, submitted as they are to a real SLURM of two nodes on this machine.

The jobs take minutes, most of them in imports and in SLURM's own timeouts. So the first test starts the jobs of all
selected tests, each driven by a function in a thread; each test then looks at the outcome of its own.
"""

from __future__ import annotations

import getpass
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.loopback import ROOT, Cluster, Job
from cluster.training_jobs import INTERRUPTED, ONE, RESUMED, TWO, Place, assert_same
from tencrop.evaluation.predictions import load_scores

# Raises an exception in the main thread of rank 1 when the file FAIL appears, while the others wait for its gradients.
FAILURE = """
import ctypes, os, threading, time

def fail():
    while not os.path.exists(os.environ["FAIL"]):
        time.sleep(0.05)
    main = ctypes.c_ulong(threading.main_thread().ident)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(ZeroDivisionError))

if os.environ.get("SLURM_PROCID") == "1":
    threading.Thread(target=fail, daemon=True).start()
"""

# Stops rank 1 of a job's first start when rank 0 is about to gather its scores, and says so in the file STOPPED.
STOP = """
import os, signal, sys, threading, time

def stop(*_, **__):
    open(os.environ["STOPPED"], "w").close()
    os.kill(os.getpid(), signal.SIGSTOP)

def plant():
    while not hasattr(sys.modules.get("tencrop.evaluation.processes"), "score_split"):
        time.sleep(0.01)
    sys.modules["torch.distributed"].all_gather = stop

if os.environ.get("SLURM_PROCID") == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    threading.Thread(target=plant, daemon=True).start()
"""


def local(place: Place) -> None:
    """The reference: two processes of one machine, without SLURM."""
    place.run_here("train.py", *place.words("hardware=ddp_cpu2", "hardware.workers=1"))


def two_nodes(place: Place) -> tuple[Job, Job, list[Path]]:
    """Two nodes, one of which first dies and then falls silent; then their evaluation, see evaluate_on_two_nodes."""
    job = place.train("hardware.nodes=2", options=TWO)
    job.wait_until(lambda: place.step() >= 20, "step 20")
    place.cluster.kill_node("n1")
    job.wait_until(lambda: job.states() == ["PENDING"], "the job is requeued")
    place.cluster.start_node("n1")
    step = place.step()
    job.wait_until(lambda: RESUMED in job.log and place.step() > step, "training resumes")
    place.cluster.signal_node("n1", signal.SIGSTOP)
    job.wait_until(lambda: job.states() == ["PENDING"], "the job is requeued")
    place.cluster.kill_node("n1")
    place.cluster.start_node("n1")
    job.wait()
    # Here, because no other scenario can use the node that this one kills.
    return job, *evaluate_on_two_nodes(place)


def evaluate_on_two_nodes(place: Place) -> tuple[Job, list[Path]]:
    """The scores by the training itself, by a job one of whose nodes dies, and by srun without --ntasks-per-node."""
    (run_dir,) = place.run_dirs()
    saved = run_dir / "predictions" / "center.safetensors"
    files = [saved.rename(run_dir / "0.safetensors")]
    words = [f"checkpoint={run_dir}/checkpoints/last.ckpt", "hardware=cpu", "hardware.nodes=2", "hardware.workers=1"]
    (place.folder / "sitecustomize.py").write_text(STOP)
    path, stopped = f"{place.folder}:{place.variables['PYTHONPATH']}", place.folder / "stopped"
    job = place.submit("evaluate.sbatch", *words, options=TWO, PYTHONPATH=path, STOPPED=str(stopped))
    job.wait_until(stopped.exists, "rank 1 has scored its images")
    place.cluster.kill_node("n1")
    job.wait_until(lambda: job.states() == ["PENDING"], "the job is requeued")
    place.cluster.start_node("n1")
    job.wait()
    files.append(saved.rename(run_dir / "1.safetensors"))
    command = ["srun", "--nodes=2", sys.executable, str(ROOT / "evaluate.py"), *words]
    place.cluster.run(*command, cwd=place.folder, variables=place.variables)
    files.append(saved.rename(run_dir / "2.safetensors"))
    return job, files


def one_node(place: Place) -> tuple[Job, Job]:
    """One node: requeued, at its time limit, cancelled, submitted again."""
    job = place.train(options=[*ONE, "--time=60"])
    job.wait_until(lambda: place.step() >= 20, "step 20")
    place.cluster.run("scontrol", "requeue", str(job.number))
    job.wait_until(lambda: RESUMED in job.log, "training resumes")
    # SLURM compares times with limits every 30 s, and this training is shorter.
    job.signal_tasks(signal.SIGSTOP)
    # 4 minutes are less than the 5 of --signal.
    place.cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=4")
    # SLURM may continue the task by itself.
    job.wait_until(lambda: job.is_pending(signal.SIGUSR1) or job.log.count(INTERRUPTED) == 2, "SLURM sends SIGUSR1")
    place.cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    job.signal_tasks(signal.SIGCONT)
    job.wait_until(lambda: job.log.count(RESUMED) == 2, "training resumes")
    place.cluster.run("scancel", str(job.number))
    job.wait("CANCELLED")
    again = place.train(options=ONE)
    again.wait()
    return job, again


def seeds(place: Place) -> Job:
    job = place.submit("seeds.sbatch", *place.words(), options=[*ONE, "--array=0-1"])
    job.wait()
    return job


def failing_rank(place: Place) -> Job:
    """Two ranks on one node, one of which has a bug."""
    (place.folder / "sitecustomize.py").write_text(FAILURE)
    path = f"{place.folder}:{place.variables['PYTHONPATH']}"
    options = [*ONE, "--ntasks-per-node=2"]
    job = place.train("hardware.devices=2", options=options, PYTHONPATH=path, FAIL=str(place.folder / "fail"))
    job.wait_until(lambda: place.step() >= 10, "step 10")
    (place.folder / "fail").touch()
    job.wait("FAILED")
    return job


SCENARIOS: dict[str, Callable[[Place], Any]] = {
    "local": local,
    "two_nodes": two_nodes,
    "one_node": one_node,
    "seeds": seeds,
    "failing_rank": failing_rank,
}


@pytest.fixture(scope="module")
def places(cluster: Cluster, prepared_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    """The folder of each scenario. Spaces, commas and brackets in its path must reach train.py."""
    folder = tmp_path_factory.mktemp("scenarios")
    data = folder / "digits, [prepared] = here"
    data.symlink_to(prepared_digits)
    return {name: Place(cluster, folder / name, data) for name in SCENARIOS}


@pytest.fixture(scope="module")
def outcome(
    cluster: Cluster, places: dict[str, Place], request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Any]]:
    """outcome(name): what a scenario returned; it starts those that any selected test is marked with, all at once."""
    names = {name for item in request.session.items for mark in item.iter_markers("scenario") for name in mark.args}
    with ThreadPoolExecutor() as executor:
        futures = {name: executor.submit(SCENARIOS[name], places[name]) for name in names}
        yield lambda name: futures[name].result()
        cluster.run("scancel", f"--user={getpass.getuser()}")  # after a failure; otherwise they have all ended


@pytest.mark.scenario("seeds")
def test_an_array_trains_one_run_a_seed(outcome, places):
    job = outcome("seeds")
    assert job.states() == ["COMPLETED", "COMPLETED"]
    assert [path.name.partition("-")[0] for path in places["seeds"].run_dirs()] == ["seed0", "seed1"]
    logs = sorted(places["seeds"].folder.glob(f"slurm-{job.number}_*.log"))
    assert [path.stem[-1] for path in logs] == ["0", "1"] and all("complete" in path.read_text() for path in logs)


@pytest.mark.scenario("one_node", "seeds")
def test_an_interrupted_job_ends_like_an_uninterrupted_one(outcome, places):
    job, again = outcome("one_node")
    # `scontrol requeue` and scancel send SIGTERM, and SIGUSR1 comes ahead of the time limit: a checkpoint each time.
    assert job.log.count(INTERRUPTED) == 3 and int(job.detail("Restarts")) == 2
    assert job.log.count("requeueing the job, which resumes from its checkpoint") == 1  # the time limit
    assert job.log.count(RESUMED) == 2 and again.log.count(RESUMED) == 1
    outcome("seeds")
    assert_same(places["one_node"].run_dirs()[0], places["seeds"].run_dirs()[0])


@pytest.mark.scenario("two_nodes", "local")
def test_a_node_that_dies_ends_in_a_requeue(outcome, places):
    """The first one by a reset connection, the second one by silence; the weights are those of the local run."""
    job, *_ = outcome("two_nodes")
    assert "rank 0: a connection to another rank was lost, its process or node has died" in job.log
    assert "rank 0: rank 1 on n1 has not answered for" in job.log
    assert job.log.count(RESUMED) == 2 and int(job.detail("Restarts")) == 2
    outcome("local")
    assert_same(places["two_nodes"].run_dirs()[0], places["local"].run_dirs()[0])


@pytest.mark.scenario("failing_rank")
def test_a_rank_that_fails_ends_the_job(outcome):
    """With 1, although the others have lost their connections to it."""
    job = outcome("failing_rank")
    assert job.detail("ExitCode") == "1:0" and int(job.detail("Restarts")) == 0
    assert "ZeroDivisionError" in job.log and "rank 0: rank 1 ended with exit code 1; see its message" in job.log


@pytest.mark.scenario("two_nodes")
def test_two_nodes_evaluate_each_image_once(outcome):
    own, *others = [load_scores(path) for path in outcome("two_nodes")[-1]]
    assert own.index.tolist() == list(range(500))
    for scores in others:
        for name in ("index", "labels", "softmax", "logits"):
            assert torch.equal(getattr(scores, name), getattr(own, name)), name


@pytest.mark.scenario("two_nodes")
def test_an_evaluation_whose_node_dies_starts_again(outcome):
    """Its scores are those of the others, see test_two_nodes_evaluate_each_image_once."""
    _, job, _ = outcome("two_nodes")
    assert "rank 0: a connection to another rank was lost, its process or node has died" in job.log
    assert "Exited with exit code 75" in job.log and int(job.detail("Restarts")) == 1
    assert "requeueing the job, which evaluates again; attempt 1 of 3" in job.log


def test_hardware_that_was_not_granted_is_refused_with_both_numbers(places):
    job = places["seeds"].train("hardware=nodes2x8", options=[*ONE, "--ntasks-per-node=2"])
    job.wait("FAILED")
    assert job.detail("ExitCode") == "2:0"
    assert "error: hardware.devices x hardware.nodes = 16: 2 processes were started by srun" in job.log
    assert not list(places["seeds"].folder.glob("runs/*nodes2x8*"))

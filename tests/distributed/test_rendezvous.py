"""Ranks wait for each other for a limited time, and signals end a waiting rank."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.distributed import rendezvous
from tencrop.distributed.rendezvous import meet

ROOT = Path(__file__).parents[2]

# what train.py does before it trains, as one of the two processes of a launcher
WAITING = """
import tencrop.training.fit  # not within the block: an exception from an import can be lost
from tencrop.signals import exit_when_asked
from tencrop.distributed.launch import launch_ranks

with exit_when_asked(is_first=True), launch_ranks(2):
    raise AssertionError("began without the other one")
"""


@pytest.fixture
def address():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()


def test_all_continue_when_the_last_one_has_arrived(address):
    stores = {}
    others = [threading.Thread(target=lambda r=r: stores.update({r: meet(r, 3, address, remedy="")})) for r in (2, 1)]
    for thread in others:
        thread.start()
        assert not stores
    stores[0] = meet(0, 3, address, remedy="")
    for thread in others:
        thread.join()
    assert stores.keys() == {0, 1, 2}


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (0, r"of 3 processes, rank 1, 2 did not come to 127\.0\.0\.1:\d+ within 0\.01 minutes; unset them"),
        (1, r"of 3 processes, this one got no answer from rank 0 to 127\.0\.0\.1:\d+ within 0\.01 minutes; unset them"),
    ],
)
def test_a_missing_rank_is_reported_after_the_time_limit(rank, words, address, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "ANSWER_MINUTES", 0.01)
    monkeypatch.setattr(rendezvous, "SAY_AFTER_S", 0.0)
    with pytest.raises(UserError, match=words):
        meet(rank, 3, address, remedy="unset them")
    assert capsys.readouterr().err.count("so far; waiting until 0.01 minutes are over") == 1


def test_a_port_that_another_program_uses_is_named(address):
    with socket.create_server(address), pytest.raises(UserError, match=f"MASTER_PORT={address[1]}: another program"):
        meet(0, 2, address, remedy="")


def test_waiting_ranks_report_that_rank_0_ended(address, monkeypatch):
    program = f"from tencrop.distributed.rendezvous import meet; meet(0, 3, {address}, remedy='')"
    first = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT / "src")})

    def wait(_: rendezvous._Clock, reason: str) -> None:
        if "rank 2 did not come" in reason:  # so this one did
            first.kill()
        time.sleep(0.1)

    monkeypatch.setattr(rendezvous._Clock, "wait", wait)
    with pytest.raises(UserError, match="rank 0 of 3 ended while rank 1 waited"):
        meet(1, 3, address, remedy="")
    first.wait()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interruption_waits_until_torch_has_connected(rank, monkeypatch):
    """Otherwise torch returns into an interpreter that is exiting, and the process aborts; 75 is expected."""
    returned = threading.Event()

    def connect(*_, **__) -> None:
        time.sleep(1)
        returned.set()

    def interrupt(*_) -> None:
        raise SystemExit(75)

    monkeypatch.setattr(rendezvous, "TCPStore", connect)
    monkeypatch.setattr(rendezvous._Clock, "wait", interrupt)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(SystemExit):
        meet(rank, 2, server.getsockname(), remedy="")
    assert returned.is_set()


def connected(address) -> None:
    """Waits until somebody listens."""
    while True:
        try:
            return socket.create_connection(address).close()
        except ConnectionRefusedError:
            pass


def test_signals_end_a_process_that_waits_for_the_others(address):
    """The first one has opened its port; the other one has found somebody there who does not know it."""
    stranger = socket.create_server(("127.0.0.1", 0))
    ports = {0: address[1], 1: stranger.getsockname()[1]}
    processes = {rank: subprocess.Popen(**waiting(rank, ports[rank])) for rank in ports}
    connected(address)
    found, _ = stranger.accept()
    for rank, number in ((0, signal.SIGTERM), (1, signal.SIGUSR1)):
        processes[rank].send_signal(number)
    for rank, process in processes.items():
        _, errors = process.communicate()
        # after 30 seconds, on a busy machine, a process has also said for whom it waits
        assert process.returncode == 75 and errors.endswith("interrupted; the same command continues\n"), rank
        assert "Traceback" not in errors
    found.close()
    stranger.close()


def waiting(rank: int, port: int) -> dict:
    """Arguments of Popen: WAITING as one of two tasks of srun's."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_STEP_ID": 0, "SLURM_NODEID": 0}
    variables |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2}
    words = {name: str(value) for name, value in variables.items()} | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", WAITING]
    return {"args": command, "env": {**os.environ, **words}, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True}

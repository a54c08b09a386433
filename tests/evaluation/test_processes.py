"""Every image is scored once, on one or several processes, which end together."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tencrop.config import UserError
from tencrop.evaluation import processes
from tencrop.evaluation.inference import ScoringTask, open_val_split, score_part
from tencrop.evaluation.processes import _score_in_new_processes, score_split
from typed import stand_in

PROTOCOL = ("protocol=five_crop", "protocol.side=38", "protocol.filter=bilinear")


def test_501_images_on_three_processes_are_each_counted_once(make_config, make_task, tmp_path) -> None:
    task, network = make_task(make_config(*PROTOCOL, "hardware.max_micro_batch=64"))
    alone = score_split(task, network, tmp_path)
    task, network = make_task(make_config(*PROTOCOL, "hardware.devices=3", "hardware.max_micro_batch=64"))
    split = open_val_split(task.config)
    parts = [score_part(task, network, split, rank=rank, num_ranks=4) for rank in range(4)]
    assert [len(part.index) for part in parts] == [125, 125, 125, 126], "parts are uneven"
    together = score_split(task, network, tmp_path)
    assert alone is not None and together is not None
    assert set(together.index.tolist()) == set(range(501)) and len(together.index) == 501
    assert torch.equal(together.labels, alone.labels)
    assert torch.equal(together.softmax_ranks, alone.softmax_ranks)
    torch.testing.assert_close(together.softmax, alone.softmax, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", ["in its group", "alone", "in new processes"])
def test_the_local_rank_chooses_the_gpu(make_config, make_task, monkeypatch, tmp_path, start) -> None:
    """Rank 1 of four is the first rank of the second machine if srun assigns ranks in turn."""
    devices = {"in its group": 2, "alone": 1, "in new processes": 2}[start]
    config = make_config("hardware.accelerator=gpu", f"hardware.devices={devices}", "hardware.nodes=2")
    task, network = make_task(config)
    used: list[int] = []

    class Known(Exception):
        """Raised when the device has been recorded, to end the pass."""

    def set_device(number: int) -> None:
        used.append(number)
        raise Known

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setenv("LOCAL_RANK", "0")
    if start == "in its group":
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    with pytest.raises(Known):
        if start == "in new processes":
            monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
            processes._process(1, task, 2, tmp_path, tmp_path, multiprocessing.get_context("spawn").SimpleQueue())
        else:
            score_split(task, network, tmp_path)
    assert used == [1 if start == "in new processes" else 0]


def test_a_checkpoint_overwritten_during_evaluation_is_detected(
    make_config, make_task, new_network, save_checkpoint, tmp_path
) -> None:
    """A UserError in a started process is a UserError here as well."""
    task, _ = make_task(make_config())
    save_checkpoint(task.path, task.config, new_network(task.config, seed=1))
    with pytest.raises(UserError, match="was overwritten during its evaluation"):
        _score_in_new_processes(task, num_processes=1, out=tmp_path)


@pytest.mark.parametrize("full", ["TMPDIR", "the output folder"])
def test_scores_need_room_in_the_output_folder_alone(
    make_config, make_task, small_disk, monkeypatch, tmp_path, full
) -> None:
    """Only that folder was checked for writability; /tmp may be smaller than the scores."""
    with pytest.raises(OSError, match="No space"), open(small_disk / "full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(small_disk / "full", (small_disk / "full").stat().st_size - 3 * 4096)  # the processes meet, no more
    task, network = make_task(make_config("hardware.devices=2"))
    if full == "TMPDIR":
        monkeypatch.setenv("TMPDIR", str(small_disk))
        monkeypatch.setattr(tempfile, "tempdir", None)
        scores = score_split(task, network, tmp_path / "out")
        assert scores is not None and len(scores.index) == 501 and not any((tmp_path / "out").iterdir())
        return
    with pytest.raises(UserError, match="the disk is full"):
        score_split(task, network, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["full"]


def test_a_process_that_printed_its_error_causes_no_traceback(make_config, make_task, monkeypatch, tmp_path) -> None:
    """A process whose store is truncated exits with code 2 and without an exception."""

    def spawn(*_: object, **__: object) -> None:
        raise mp.ProcessExitedException("exited", 0, 123, 2)

    task, network = make_task(make_config("hardware.devices=2"))
    monkeypatch.setattr(mp, "spawn", spawn)
    with pytest.raises(SystemExit, match="2"):
        score_split(task, network, tmp_path)


def _waiting(rank: int, task: object, num_ranks: int, meeting: Path, folder: Path, messages: object) -> None:
    (folder / f"{rank}.partial").write_text(str(os.getpid()))
    (folder / f"{rank}.partial").rename(folder / f"{rank}.pid")
    time.sleep(3600)


def test_ctrl_c_ends_the_started_processes(monkeypatch, tmp_path) -> None:
    def interrupt() -> None:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(processes, "_process", _waiting)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        messages = multiprocessing.get_context("spawn").SimpleQueue()
        processes._spawn_and_join(stand_in(ScoringTask), 2, tmp_path, tmp_path, messages)
    for path in tmp_path.glob("*.pid"):
        while _is_alive(path.read_text()):  # else the time limit of the tests
            time.sleep(0.1)


def _is_alive(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

import os
import signal
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer

from tencrop.distributed.collectives import all_reduce
from tencrop.progress import duration
from tencrop.signals import SIGNALS, exit_when_asked
from tencrop.training.monitors import Interrupted, Interruption, Metrics, Pace, job_end_time, pace_sentence
from typed import stand_in

NOW = datetime(2026, 11, 21, 12, 0).timestamp()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_only_sets_a_flag(number):
    before = signal.getsignal(number)
    with Interruption(agree_every_steps=10) as interruption:
        assert not interruption.is_requested
        os.kill(os.getpid(), number)
        assert interruption.is_requested
        assert interruption.is_agreed(SimpleNamespace(world_size=1), step=3)
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once():
    with Interruption(agree_every_steps=10):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_last_checkpoint_is_raised_again(number):
    with pytest.raises(SystemExit, match="75"), exit_when_asked(is_first=True):
        with Interruption(agree_every_steps=10) as interruption:
            os.kill(os.getpid(), number)  # handled by the training
        interruption.pass_on()


def test_ranks_agree_every_few_steps_only():
    interruption = Interruption(agree_every_steps=10)
    interruption.is_requested = True
    trainer = stand_in(Trainer, world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert not interruption.is_agreed(trainer, step=19)
    assert interruption.is_agreed(trainer, step=20)
    assert interruption.is_agreed(trainer, step=19, at_epoch_end=True)


def test_stopping_names_the_step():
    with pytest.raises(Interrupted, match="after step 12; the same command continues"):
        Interruption(agree_every_steps=1).stop(12)


def test_all_reduce_returns_a_copy():
    value = torch.ones(2)
    assert torch.equal(all_reduce(value), value) and all_reduce(value) is not value


@pytest.mark.parametrize(
    ("step", "line"), [(0, "training for 1,716 steps"), (500, "resuming after step 500 of 1,716")], ids=["new", "old"]
)
def test_the_first_line_names_the_run(step, line, tmp_path, capsys):
    pace = Pace(Metrics(tmp_path / "metrics.jsonl", every_steps=20))
    classifier = SimpleNamespace(total_steps=1716)
    pace.on_train_start(stand_in(Trainer, is_global_zero=False, global_step=step), classifier)
    assert capsys.readouterr().err == ""
    pace.on_train_start(stand_in(Trainer, is_global_zero=True, global_step=step), classifier)
    assert capsys.readouterr().err == f"{tmp_path}: {line}\n"


def test_pace_against_the_time_limit():
    alone = pace_sentence(1000.0, 3_600_000, now=NOW, limit=None)
    assert alone == "1,000 images/s: training ends in 1 h 0 min, 21 Nov 13:00 (validation not counted)"
    assert pace_sentence(1000.0, 3_600_000, now=NOW, limit=NOW + 7200).endswith("the job's time limit is 21 Nov 14:00")
    late = pace_sentence(1000.0, 3_600_000, now=NOW, limit=NOW + 1800)
    assert late.endswith("the job's time limit comes 30 min 0 s before, then the same command continues")


def test_durations_are_readable():
    assert [duration(seconds) for seconds in (-1, 12.4, 250, 12_000)] == ["0 s", "12 s", "4 min 10 s", "3 h 20 min"]


@pytest.mark.parametrize("end", ["Unknown", "nan", "1e300", "99999999999999", "-1", "\u00b2"])
def test_an_invalid_job_end_time_is_reported_and_squeue_is_asked(end, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_end_time() is None
    assert f"SLURM_JOB_END_TIME={end}: not a Unix time in seconds" in capsys.readouterr().err
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 2026-11-21T12:00:00\n")
    (tmp_path / "squeue").chmod(0o755)
    assert job_end_time() == NOW


def test_the_job_end_time_comes_from_slurm(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert job_end_time() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(NOW))
    assert job_end_time() == NOW
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 2026-11-21T12:00:00\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert job_end_time() == NOW
    squeue.write_text("#!/bin/sh\necho NONE\n")
    assert job_end_time() is None

import time
from types import SimpleNamespace

from pytorch_lightning import Trainer

from tencrop.progress import LINE_EVERY_S, LogTimer
from tencrop.training.monitors import Metrics
from tencrop.training.progress import ProgressBar
from typed import present, stand_in


def watched(**facts):
    defaults = {"num_epochs": 2, "global_step": 5, "total_steps": 10, "current_epoch": 0, "is_at_step_boundary": True}
    return SimpleNamespace(**(defaults | {"selection_split": "val"} | facts))


def test_without_a_terminal_a_validation_prints_a_line(tmp_path, capsys):
    bar = ProgressBar(Metrics(tmp_path / "metrics.jsonl", every_steps=1))
    trainer = stand_in(Trainer, is_global_zero=True)
    validation = {"loss": 1.5, "top1_error": 0.25, "top5_error": 0.125}
    bar.on_train_start(trainer, watched())
    bar.on_train_batch_end(trainer, watched())
    bar.on_validation_end(trainer, watched(validation=validation))
    bar.teardown(trainer, watched(), "fit")
    assert capsys.readouterr().err == "epoch 1: val top-1 error 25.00%, top-5 12.50%, loss 1.5000\n"


def test_without_a_terminal_a_long_run_prints_progress_lines(tmp_path, capsys, monkeypatch):
    metrics = Metrics(tmp_path / "metrics.jsonl", every_steps=1)
    bar, trainer = ProgressBar(metrics), stand_in(Trainer, is_global_zero=True, num_val_batches=[7])
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    bar.on_train_start(trainer, watched(global_step=2))
    for step, now in ((3, LINE_EVERY_S - 1), (4, LINE_EVERY_S), (5, LINE_EVERY_S + 1), (6, 2 * LINE_EVERY_S)):
        clock.now = now
        bar.on_train_batch_end(trainer, watched(global_step=step))
        metrics.latest["train"] = {"loss": 2.0, "top1_error": 0.5, "images_per_s": 1234.0}
    clock.now = 3 * LINE_EVERY_S
    bar.on_validation_batch_end(trainer, watched(), None, None, 2)
    bar.on_validation_batch_end(trainer, watched(), None, None, 3)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1 of 2, step 4 of 10, loss 2.000, top-1 50.0%, 1,234 images/s, 1 min 30 s left",
        "epoch 1 of 2, step 6 of 10, loss 2.000, top-1 50.0%, 1,234 images/s, 1 min 0 s left",
        "epoch 1: validating, batch 3 of 7",
    ]


def test_a_line_is_due_after_the_interval():
    timer = LogTimer(every_s=0)
    assert timer.is_due() and timer.is_due()
    timer = LogTimer(every_s=3600)
    assert not timer.is_due() and timer.time_left(num_done=1, num_left=2) == "0 s left"


def test_other_ranks_are_silent(tmp_path, capsys):
    bar = ProgressBar(Metrics(tmp_path / "metrics.jsonl", every_steps=1))
    bar.on_validation_end(stand_in(Trainer, is_global_zero=False), watched(validation={}))
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_bar_moves(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", every_steps=1)
    bar = ProgressBar(metrics)
    bar.console._force_terminal = True
    trainer = stand_in(Trainer, is_global_zero=True)
    bar.on_train_start(trainer, watched())
    metrics.latest["train"] = {"loss": 2.0, "top1_error": 0.5, "images_per_s": 1234.0}
    bar.on_train_batch_end(trainer, watched())
    task = present(bar.bar).tasks[0]
    assert (task.completed, task.total) == (5, 10)
    assert task.description == "epoch 1  loss 2.000  top-1 50.0%  1,234 images/s"
    bar.on_exception(trainer, watched())
    assert bar.bar is None

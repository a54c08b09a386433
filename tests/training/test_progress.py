from types import SimpleNamespace

from tencrop.training.monitors import Metrics
from tencrop.training.progress import ProgressBar


def watched(**facts):
    defaults = {"global_step": 5, "total_steps": 10, "current_epoch": 0, "is_at_step_boundary": True}
    return SimpleNamespace(**(defaults | {"selection_split": "val"} | facts))


def test_without_a_terminal_a_validation_is_a_line(tmp_path, capsys):
    bar = ProgressBar(Metrics(tmp_path / "metrics.jsonl", every_steps=1))
    trainer = SimpleNamespace(is_global_zero=True)
    validation = {"loss": 1.5, "top1_error": 0.25, "top5_error": 0.125}
    bar.on_train_start(trainer, watched())
    bar.on_train_batch_end(trainer, watched())
    bar.on_validation_end(trainer, watched(validation=validation))
    bar.teardown(trainer, watched(), "fit")
    assert capsys.readouterr().err == "epoch 1: val top-1 error 25.00%, top-5 12.50%, loss 1.5000\n"


def test_other_ranks_are_silent(tmp_path, capsys):
    bar = ProgressBar(Metrics(tmp_path / "metrics.jsonl", every_steps=1))
    bar.on_validation_end(SimpleNamespace(is_global_zero=False), watched(validation={}))
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_bar_moves(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", every_steps=1)
    bar = ProgressBar(metrics)
    bar.console._force_terminal = True
    trainer = SimpleNamespace(is_global_zero=True)
    bar.on_train_start(trainer, watched())
    metrics.latest["train"] = {"loss": 2.0, "top1_error": 0.5, "images_per_s": 1234.0}
    bar.on_train_batch_end(trainer, watched())
    task = bar.bar.tasks[0]
    assert (task.completed, task.total) == (5, 10)
    assert task.description == "epoch 1  loss 2.000  top-1 50.0%  1,234 images/s"
    bar.on_exception(trainer, watched())
    assert bar.bar is None

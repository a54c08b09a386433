"""Figure 1's comparison: the epoch at which a curve crosses 25%, the ratio to the fastest, and the figure."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from tencrop.report.collect import collect
from tencrop.report.training_error import (
    by_speed,
    draw_training_error,
    epochs_to,
    has_training_error,
    mean_epochs,
    speed_table,
    training_curve,
)
from tencrop.visualization.record import load_record


@pytest.fixture
def two_experiments(digits_config, run_maker):
    """ "slow" crosses 25% at epoch 6.0 and "fast" at 1.0, on straight lines from 0.5 at half of that."""
    for name, epochs in (("slow", 6.0), ("fast", 1.0)):
        config = digits_config(f"name={name}")
        folder = run_maker(config)
        rows = [(epochs / 2, "train", 0.5), (epochs / 2, "val", 0.01), (epochs * 1.5, "train", 0.0)]
        lines = [json.dumps({"epoch": at, "split": split, "top1_error": error}) for at, split, error in rows]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return by_speed(collect([folder.parent.parent]))


def test_crossing_is_where_the_straight_line_crosses():
    curve = [(1.0, 0.9), (2.0, 0.45), (4.0, 0.05), (5.0, 0.6)]
    assert epochs_to(0.25, curve) == pytest.approx(3.0)
    assert epochs_to(0.45, curve) == 2.0
    assert epochs_to(0.95, curve) == 1.0
    assert epochs_to(0.01, curve) is None


def test_the_fastest_comes_first_and_the_others_state_their_ratio(two_experiments):
    assert [experiment.name for experiment in two_experiments] == ["fast", "slow"]
    assert [mean_epochs(experiment) for experiment in two_experiments] == pytest.approx([1.0, 6.0])
    fast, slow = speed_table(two_experiments).splitlines()
    assert fast == "fast: 1.00 epochs to 25% training error (1 seed), 1.0 times"
    assert slow == "slow: 6.00 epochs to 25% training error (1 seed), 6.0 times"


def test_the_error_of_the_held_out_images_is_not_drawn(two_experiments):
    assert training_curve(two_experiments[0].runs[0]) == [(0.5, 0.5), (1.5, 0.0)]


def test_an_experiment_that_never_reaches_the_target_is_named(evaluated_run, tmp_path):
    folder = evaluated_run()
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "split": "train", "top1_error": 0.9}\n')
    (experiment,) = by_speed(collect([tmp_path / "runs"]))
    assert speed_table([experiment]).endswith("not at 25% training error in all of 1 seed")


def test_only_errors_on_plain_labels_are_compared(evaluated_run):
    folder = evaluated_run()
    (experiment,) = collect([folder])
    assert has_training_error(experiment)
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "split": "train", "top1_error": 0.9, "labels": "heavier"}\n')
    assert not has_training_error(collect([folder])[0])
    (folder / "metrics.jsonl").unlink()
    assert not has_training_error(collect([folder])[0])


def test_a_run_without_a_log_is_refused_by_the_command(evaluated_run, tmp_path):
    folder = evaluated_run()
    (folder / "metrics.jsonl").unlink()
    command = [sys.executable, "-m", "tencrop.report.training_error", f"runs=[{folder}]", f"output={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "has logged no training error" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_picture_has_a_line_for_each_and_is_the_same_again(two_experiments, tmp_path):
    svg, png = draw_training_error(two_experiments, tmp_path / "figure")
    text = svg.read_text()
    assert "training error rate" in text and "fast" in text and "slow" in text
    with Image.open(png) as picture:
        assert picture.width > 500
    record = load_record(svg.with_suffix(".json"))
    assert "slow: 6.00 epochs to 25% training error" in record.caption
    assert record.command.startswith('python -m tencrop.report.training_error "runs=[')
    again, _ = draw_training_error(two_experiments, tmp_path / "again")
    assert again.read_bytes() == svg.read_bytes()

import math

import pytest

from tencrop.config import Schedule
from tencrop.training.schedules import Plateau, after_evaluation, learning_rate


def rates(schedule: Schedule, *, epochs: int, steps_per_epoch: int = 10, base_lr: float = 0.1) -> list[float]:
    total = epochs * steps_per_epoch
    return [
        learning_rate(schedule, base_lr=base_lr, step=step, steps_per_epoch=steps_per_epoch, total_steps=total)
        for step in range(total)
    ]


def test_steps_of_fb_resnet_torch():
    path = rates(Schedule("step", 0, milestones=[30, 60], gamma=0.1), epochs=90)
    assert path[0] == path[299] == 0.1
    assert path[300] == path[599] == pytest.approx(0.01)
    assert path[600] == path[899] == pytest.approx(0.001)


def test_cosine_with_warmup():
    path = rates(Schedule("cosine", 2, min_lr=0.01), epochs=12)
    assert path[0] == pytest.approx(0.1 / 20)
    assert path[19] == pytest.approx(0.1)
    assert path[20] == pytest.approx(0.1)
    assert path[20 + 50] == pytest.approx(0.055)  # halfway down
    assert path[-1] == pytest.approx(0.01 + 0.045 * (1 + math.cos(math.pi * 99 / 100)))
    assert sorted(path[20:], reverse=True) == path[20:]


def test_warmup_precedes_every_schedule():
    path = rates(Schedule("constant", 1), epochs=2)
    assert path == pytest.approx([0.01 * (step + 1) for step in range(10)] + [0.1] * 10)
    path = rates(Schedule("step", 1, milestones=[2], gamma=0.1), epochs=3)
    assert path[4] == pytest.approx(0.05) and path[10] == 0.1 and path[20] == pytest.approx(0.01)


def test_a_fraction_of_an_epoch_is_rounded_to_steps():
    path = rates(Schedule("step", 0.5, milestones=[1.5], gamma=0.5), epochs=2)
    assert path[4] == pytest.approx(0.1) and path[14] == pytest.approx(0.1) and path[15] == pytest.approx(0.05)


def test_plateau_drops_after_patience_and_at_most_max_drops_times():
    schedule = Schedule("plateau", 0, gamma=0.1, patience=2, max_drops=2)
    plateau, drops = Plateau(), []
    for error in (0.9, 0.8, 0.8, 0.85, 0.7, 0.75, math.nan, 0.8, 0.8, 0.8, 0.8):
        plateau = after_evaluation(plateau, error, schedule=schedule)
        drops.append(plateau.drops)
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert plateau.best_error == 0.7
    lr = learning_rate(schedule, base_lr=0.01, step=5, steps_per_epoch=1, total_steps=20, drops=plateau.drops)
    assert lr == pytest.approx(1e-4)

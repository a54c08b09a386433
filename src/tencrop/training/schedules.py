"""Learning-rate schedules: pure functions of the step. Called by the classifier before every optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tencrop.config import Schedule


@dataclass(frozen=True)
class Plateau:
    """What the plateau schedule remembers of the evaluations so far; part of the checkpoint."""

    best_error: float = math.inf
    num_worse: int = 0  # evaluations since the best, or since the last drop
    drops: int = 0


def learning_rate(
    schedule: Schedule, *, base_lr: float, step: int, steps_per_epoch: int, total_steps: int, drops: int = 0
) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `total_steps`.

    All schedules begin with `warmup_epochs` in which it rises linearly and reaches base_lr in the last step of them.
    step: times gamma at each milestone (epochs). cosine: half a cosine from base_lr after the warm-up to min_lr at
    the end (Loshchilov & Hutter 2017, without restarts). plateau: times gamma for each of the `drops` so far.
    """
    assert 0 <= step < total_steps, (step, total_steps)
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule.name == "constant":
        return base_lr * warmup
    if schedule.name == "step":
        assert schedule.milestones is not None and schedule.gamma is not None
        num_passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
        return base_lr * warmup * schedule.gamma**num_passed
    if schedule.name == "plateau":
        assert schedule.gamma is not None
        return base_lr * warmup * schedule.gamma**drops
    assert schedule.name == "cosine" and schedule.min_lr is not None, schedule.name
    if step < warmup_steps:
        return base_lr * warmup
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return schedule.min_lr + 0.5 * (base_lr - schedule.min_lr) * (1 + math.cos(math.pi * progress))


def after_evaluation(plateau: Plateau, error: float, *, schedule: Schedule) -> Plateau:
    """The state after one more (minival) error, a fraction.

    The rate drops when `patience` evaluations in a row brought no error below the best (Krizhevsky et al. 2012,
    section 5, "when the validation error rate stopped improving"), at most `max_drops` times.
    """
    assert schedule.patience is not None and schedule.max_drops is not None
    if error < plateau.best_error:
        return replace(plateau, best_error=error, num_worse=0)
    num_worse = plateau.num_worse + 1
    if num_worse >= schedule.patience and plateau.drops < schedule.max_drops:
        return replace(plateau, num_worse=0, drops=plateau.drops + 1)
    return replace(plateau, num_worse=num_worse)

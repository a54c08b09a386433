"""Learning-rate schedules, as pure functions of the optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tencrop.config import Schedule


@dataclass(frozen=True)
class Plateau:
    """State of the plateau schedule after the evaluations so far; stored in checkpoints."""

    best_error: float = math.inf
    num_worse: int = 0  # evaluations without a new best error, since the best one or the last drop
    drops: int = 0  # how often the learning rate has been multiplied by gamma


def learning_rate(
    schedule: Schedule, *, base_lr: float, step: int, steps_per_epoch: int, total_steps: int, drops: int = 0
) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `total_steps`.

    All schedules start with a linear warm-up over `warmup_epochs`, which reaches base_lr in its last step.
    step: multiplied by gamma at each milestone (in epochs). cosine: half a cosine from base_lr after the warm-up to
    min_lr at the end (Loshchilov & Hutter 2017, without restarts). plateau: multiplied by gamma `drops` times.
    """
    assert 0 <= step < total_steps, (step, total_steps)
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    # The "gradual warmup" of Goyal et al. 2017, section 2.2. step + 1, because at a rate of 0 the first step is wasted.
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule.name == "constant":
        return base_lr * warmup
    if schedule.name == "step":
        assert schedule.milestones is not None and schedule.gamma is not None
        # Milestones count from the start of training, warm-up included, as the papers' "drop at epoch 30".
        num_passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
        return base_lr * warmup * schedule.gamma**num_passed
    if schedule.name == "plateau":
        assert schedule.gamma is not None
        return base_lr * warmup * schedule.gamma**drops
    assert schedule.name == "cosine" and schedule.min_lr is not None, schedule.name
    if step < warmup_steps:
        return base_lr * warmup
    # Changed at every step, not every epoch. The last step is one step short of min_lr.
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return schedule.min_lr + 0.5 * (base_lr - schedule.min_lr) * (1 + math.cos(math.pi * progress))


def after_evaluation(plateau: Plateau, error: float, *, schedule: Schedule) -> Plateau:
    """The state after one more evaluation with this top-1 error (a fraction).

    The learning rate drops after `patience` evaluations in a row without a new best error, at most `max_drops` times
    (Krizhevsky et al. 2012, section 5: "when the validation error rate stopped improving with the current learning
    rate").
    """
    assert schedule.patience is not None and schedule.max_drops is not None
    if error < plateau.best_error:
        return replace(plateau, best_error=error, num_worse=0)
    num_worse = plateau.num_worse + 1
    if num_worse >= schedule.patience and plateau.drops < schedule.max_drops:
        return replace(plateau, num_worse=0, drops=plateau.drops + 1)
    return replace(plateau, num_worse=num_worse)

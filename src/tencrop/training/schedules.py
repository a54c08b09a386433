"""Learning-rate schedules, as pure functions of the optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tencrop.config import Schedule, Training


@dataclass(frozen=True)
class Plateau:
    """State of the plateau schedule after the evaluations so far; stored in checkpoints."""

    best_error: float = math.inf
    num_worse: int = 0  # evaluations without a new best error, since the best one or the last drop
    drops: int = 0  # how often the learning rate has been multiplied by gamma


def schedule_length(training: Training, steps_per_epoch: int) -> int:
    """The budget of the training in optimizer steps, which sets the schedule; `max_steps` may end it before."""
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    return training.epochs * steps_per_epoch


def learning_rate(
    schedule: Schedule, *, base_lr: float, step: int, steps_per_epoch: int, total_steps: float, drops: int = 0
) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `total_steps`; drops: those of the plateau so far.

    A linear warm-up over `warmup_epochs` multiplies the schedule, or replaces it if `warmup_from` is given. With `unit:
    epoch`, all steps of an epoch have the learning rate of its first one.
    """
    assert 0 <= step < total_steps, (step, total_steps)
    if schedule.unit == "epoch":
        step, total_steps, steps_per_epoch = step // steps_per_epoch, total_steps / steps_per_epoch, 1
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps and schedule.warmup_from is not None:
        return schedule.warmup_from + (base_lr - schedule.warmup_from) * step / warmup_steps
    start = warmup_steps if schedule.cosine_from == "warmup_end" else 0
    match schedule.name:
        case "cosine" if step >= start:
            lr = _cosine(schedule, base_lr, progress=(step - start) / (total_steps - start))
        case "poly":
            assert schedule.power is not None
            lr = base_lr * (1 - step / total_steps) ** schedule.power  # Caffe's poly, which ends at 0
        case "onecycle":
            lr = _onecycle(schedule, base_lr, step=step, total_steps=total_steps)
        case _:
            lr = base_lr * _factor(schedule, step=step, steps_per_epoch=steps_per_epoch, drops=drops)
    return lr * _warmup(schedule, step=step, warmup_steps=warmup_steps)


def _warmup(schedule: Schedule, *, step: int, warmup_steps: int) -> float:
    if step >= warmup_steps:
        return 1.0
    if schedule.warmup_factor is not None:
        return schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup_steps
    # The "gradual warmup" of Goyal et al. 2017, section 2.2. step + 1, because at a rate of 0 the first step is wasted.
    return (step + 1) / warmup_steps


def _cosine(schedule: Schedule, base_lr: float, *, progress: float) -> float:
    """Half a cosine from base_lr to min_lr at progress 1 (Loshchilov & Hutter 2017, without restarts)."""
    assert schedule.min_lr is not None
    return schedule.min_lr + 0.5 * (base_lr - schedule.min_lr) * (1 + math.cos(math.pi * progress))


def _onecycle(schedule: Schedule, base_lr: float, *, step: int, total_steps: float) -> float:
    """torch's OneCycleLR with cosines, without its cycle of the momentum (Smith & Topin 2018).

    Half a cosine from base_lr / div_factor up to base_lr, then one down to the first rate / final_div_factor, which the
    last step reaches.
    """
    assert schedule.pct_start is not None and schedule.div_factor is not None and schedule.final_div_factor is not None
    first, peak = base_lr / schedule.div_factor, schedule.pct_start * total_steps - 1  # torch's peak is no whole step
    if step < peak:
        start, end, progress = first, base_lr, step / peak
    else:
        start, end, progress = base_lr, first / schedule.final_div_factor, (step - peak) / (total_steps - 1 - peak)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, progress)))


def _factor(schedule: Schedule, *, step: int, steps_per_epoch: int, drops: int) -> float:
    """The schedules that depend only on the epochs done, as a factor of base_lr."""
    match schedule.name:
        case "step":
            assert schedule.milestones is not None and schedule.gamma is not None
            # Milestones count from the start of training, warm-up included, as the papers' "drop at epoch 30".
            num_passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
            return schedule.gamma**num_passed
        case "plateau":
            assert schedule.gamma is not None
            return schedule.gamma**drops
        case "exponential":  # TensorFlow's exponential_decay with staircase=True
            assert schedule.gamma is not None and schedule.decay_epochs is not None
            # The small number: 1.1 epochs of 50 steps are 55.00000000000001 in float64, but step 55 starts a period.
            return schedule.gamma ** math.floor(step / (schedule.decay_epochs * steps_per_epoch) + 1e-9)
        case "piecewise":  # as in ffcv and in ConvMixer; constant before the first knot and after the last
            assert schedule.knots is not None and schedule.factors is not None
            return float(np.interp(step / steps_per_epoch, schedule.knots, schedule.factors))
    return 1.0


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

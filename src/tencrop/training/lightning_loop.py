"""Removes work that Lightning does in every step for features that no run uses; build_trainer calls it.

Nothing here changes what is computed. bench/step_time.py compares a run with a bare loop.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from pytorch_lightning import Callback, Trainer

# Hooks that Lightning calls in every step, or around the backward pass and the update of the weights.
STEP_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_before_zero_grad",
)  # fmt: skip


def skip_unused_work(trainer: Trainer) -> None:
    """Take profiling, hooks without a body and the inspection of signatures out of this trainer's steps."""
    # Lightning's profiler that measures nothing makes about 75 generators a step.
    no_profile = nullcontext()
    trainer.profiler.profile = lambda action_name: no_profile  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning asks whether it is callable
    # Lightning inspects the signature of training_step in every step, to learn whether it takes `batch_idx`.
    trainer.fit_loop.epoch_loop._build_kwargs = _step_arguments  # type: ignore[method-assign]


def _step_arguments(kwargs: Any, batch: Any, batch_idx: int) -> Any:
    kwargs["batch"], kwargs["batch_idx"] = batch, batch_idx
    return kwargs

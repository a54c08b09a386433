"""Removes work that Lightning does in every step for features that no run uses; build_trainer calls it.

Nothing here changes what is computed. bench/step_time.py compares a run with a bare loop.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

# Hooks that Lightning calls in every step, or around the backward pass and the update of the weights.
STEP_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_before_zero_grad",
)  # fmt: skip
UPDATE_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


def skip_unused_work(trainer: Trainer) -> None:
    """Take profiling, hooks without a body, inspection of signatures and empty wrappers out of this trainer's steps."""
    nothing = nullcontext()
    # Lightning's profiler that measures nothing makes about 75 generators a step.
    trainer.profiler.profile = lambda action_name: nothing  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning asks whether it is callable
    # Lightning inspects the signature of training_step in every step, to learn whether it takes `batch_idx`.
    trainer.fit_loop.epoch_loop._build_kwargs = _step_arguments  # type: ignore[method-assign]
    trainer.precision_plugin.train_step_context = lambda: nothing  # type: ignore[method-assign,assignment,return-value]
    # Without asking three objects for hooks around the transfer: none has any.
    strategy = trainer.strategy
    strategy.batch_to_device = lambda batch, device=None, dataloader_idx=0: (  # type: ignore[method-assign]
        trainer.datamodule.transfer_batch_to_device(batch, strategy.root_device, dataloader_idx)  # type: ignore[attr-defined]
    )
    hooks = [getattr(callback, hook) for callback in trainer.callbacks for hook in UPDATE_HOOKS]  # type: ignore[attr-defined]
    if not any(callable(hook) for hook in hooks):
        strategy.optimizer_step = _optimizer_step  # type: ignore[method-assign]
        if isinstance(strategy, SingleDeviceStrategy):  # DDP's own prepares its reducer
            strategy.backward = _backward  # type: ignore[method-assign,assignment]


def _step_arguments(kwargs: Any, batch: Any, batch_idx: int) -> Any:
    kwargs["batch"], kwargs["batch_idx"] = batch, batch_idx
    return kwargs


def _optimizer_step(optimizer: Any, closure: Any, *_: Any, **__: Any) -> None:
    optimizer.step()  # without the closure, which does nothing; LightningOptimizer counts the step


def _backward(loss: Tensor, *_: Any, **__: Any) -> Tensor:
    loss.backward()
    return loss

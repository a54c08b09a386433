"""A GPU without a GPU: fake tensors live on `cuda`, and what would make the host wait for the device fails.

Used by test_rehearsal.py. A fake tensor has a shape, a type and a device, and no numbers: forward passes run, and
whoever asks for a number (.item(), .numpy(), nonzero, a boolean mask) fails already. Copies between host and device
pass torch's fakes; they are refused here unless they are asynchronous.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten


class Waits(AssertionError):
    """The host would wait for the device here."""


class Watch(TorchDispatchMode):
    """Fails on every operation that would wait, while `is_on`."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes, self.is_on = fakes, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self.fakes.from_tensor, (args, kwargs or {}))
        if func.namespace == "aten" and func._can_decompose():
            with self:  # under inference_mode these come whole, with the copies in them
                return func.decompose(*args, **kwargs)
        if self.is_on:
            check_devices(func, args, kwargs)
        if func is aten._fused_sgd_.default:  # torch has no fake of it; it changes numbers in place, and no shape
            return None
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Waits(f"{func}: the host would read a number") from error


def check_devices(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raises Waits for a copy that waits: any from the device, and one to it unless it is asynchronous; and for an
    operation on tensors of both, which copies within itself (an index on the host) or cannot be computed."""
    if func in (aten._to_copy.default, aten.copy_.default):
        is_copy_to = func is aten.copy_.default
        source = args[1].device if is_copy_to else args[0].device
        target = args[0].device if is_copy_to else torch.device(kwargs.get("device") or source)
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if source.type != target.type and (target.type == "cpu" or not non_blocking):
            raise Waits(f"{func}: a blocking copy from {source} to {target}")
        return
    devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    if len(devices) > 1:
        raise Waits(f"{func}: tensors of {' and '.join(sorted(devices))}")


@contextmanager
def rehearsal() -> Iterator[Watch]:
    """While it lasts, tensors are fake; what is to be rehearsed runs between `watch.is_on = True` and False."""
    with ExitStack() as stack:
        for name in ("cuda.amp.common.amp_definitely_not_available", "cuda.is_bf16_supported"):  # autocast asks
            stack.enter_context(patch(f"torch.{name}", return_value=name == "cuda.is_bf16_supported"))
        fakes = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Watch(fakes))

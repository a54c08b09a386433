"""torch.compile of the network in training steps (training.compile); the Classifier calls it.

Evaluation, the moving average and exact BatchNorm statistics run the network as it is: an error then has the same
rounding as in evaluate.py, and no batch of another size is compiled. The network is not wrapped, so the names of its
weights stay.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tencrop.config import Config, UserError, accelerator_of
from tencrop.config.launcher import is_first_process
from tencrop.data.augmentation.progressive import training_sizes

# torch's own limit of compilations of one function, which importing timm's optimizers raises to a million
TORCH_LIMIT = 8


def check_compiler(config: Config) -> None:
    """Raise UserError if torch.compile has no compiler on this machine: C++ for a CPU, Triton for a GPU."""
    if config.training.compile == "none":
        return
    if accelerator_of(config.hardware) == "cpu":
        from torch._inductor import config as inductor

        names = [name for name in inductor.cpp.cxx if name]
        if not any(shutil.which(name) for name in names):
            raise UserError(
                f"training.compile={config.training.compile}: torch.compile needs a C++ compiler on a CPU, and there is"
                f" no {' or '.join(names)}; install one, or set training.compile=none"
            )
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        raise UserError(
            f"training.compile={config.training.compile}: torch.compile needs Triton and a GPU that it supports;"
            " install triton, or set training.compile=none"
        )


class NotCompiled(UserError):
    """Torch could not compile the network, or was interrupted while it did."""


class CompiledNetwork:
    """The forward pass of `network`, compiled together with its gradient at the first call.

    Not an nn.Module and no child of one: the weights keep their names.
    """

    def __init__(self, network: nn.Module, config: Config):
        self.config, self.is_reported = config, False
        # torch counts the compilations of a piece of code, here that of the lambda below, for all networks of a process
        # together: the ninth run of `-m seed=...` would be beyond the limit.
        torch._dynamo.reset()
        torch._dynamo.utils.counters["graph_break"].clear()  # of an earlier run
        # Otherwise torch compiles the backward pass when it first runs, where no one expects an error of the compiler.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        mode = config.training.compile
        # One compilation for each size of the crops (progressive resizing), as shapes that may change are slower and
        # would be compiled in the order in which the sizes came: a resumed run would round differently. Batches have
        # one size, because the last partial one is dropped.
        limits = torch._dynamo.config
        limits.recompile_limit = max(TORCH_LIMIT, len(training_sizes(config.augmentation)))
        # A function and not `network`, which torch.compile would wrap in a module of its own. Beyond the limit torch
        # would run the network without compilation, and only log it.
        limits.fail_on_recompile_limit_hit = True
        self._forward: Callable[[Tensor], Any] = torch.compile(
            lambda inputs: network(inputs), mode=None if mode == "default" else mode, dynamic=False
        )

    def __call__(self, inputs: Tensor) -> Any:
        """Raises NotCompiled if torch cannot compile the network."""
        try:
            outputs = self._forward(inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            raise NotCompiled(
                f"training.compile={self.config.training.compile}: torch cannot compile {self.config.model.name}:"
                f" {_first_paragraph(error)}; set training.compile=none"
            ) from error
        if not self.is_reported:
            self.is_reported = True
            if is_first_process():
                for sentence in (without_cuda_graphs(self.config), eager_parts(self.config)):
                    if sentence is not None:
                        print(sentence, file=sys.stderr)
        return outputs


def without_cuda_graphs(config: Config) -> str | None:
    """What a mode with CUDA graphs does on a CPU, where torch leaves them out without a word; None in other runs."""
    mode = config.training.compile
    if mode == "default" or accelerator_of(config.hardware) != "cpu":
        return None
    return f"training.compile={mode}: a CPU has no CUDA graphs; the network is compiled without them"


def eager_parts(config: Config) -> str | None:
    """What torch has left out of the compiled network so far, and its first reason; None if nothing."""
    reasons = torch._dynamo.utils.counters["graph_break"]
    if not reasons:
        return None
    return (
        f"training.compile={config.training.compile}: parts of {config.model.name} run without compilation"
        f" (graph breaks: {sum(reasons.values())}): {_first_paragraph(next(iter(reasons)))}"
    )


def _first_paragraph(reason: object) -> str:
    """In one line; what follows in torch's messages is advice to its developers."""
    return " ".join(str(reason).strip().split("\n\n")[0].split()).rstrip(".") or type(reason).__name__

"""Find layers whose gradient torch cannot compute deterministically on a GPU, before a run folder is made.

torch itself refuses such an operation only in the middle of the first backward pass.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tencrop.config import Config, UserError, accelerator_of, is_deterministic

# Node of the autograd graph -> the operation in words. The list is that of torch.use_deterministic_algorithms'
# documentation: operations that raise RuntimeError on CUDA. Those that merely switch to a deterministic kernel
# (convolutions, indexing, scatter_add, cumsum, replication padding) are not here. Adaptive pooling to 1 x 1 is a mean
# in torch and has another node. tests/training/test_determinism.py compares the table with torch on a GPU.
NONDETERMINISTIC = {
    "AdaptiveAvgPool2DBackward0": "adaptive average pooling to more than 1 x 1",
    "AdaptiveAvgPool3DBackward0": "adaptive average pooling to more than 1 x 1 x 1",
    "AdaptiveMaxPool2DBackward0": "adaptive maximum pooling",
    "AdaptiveMaxPool3DBackward0": "adaptive maximum pooling",
    "AvgPool3DBackward0": "average pooling in three dimensions (as in torch's LocalResponseNorm)",
    "FractionalMaxPool2DBackward0": "fractional maximum pooling",
    "FractionalMaxPool3DBackward0": "fractional maximum pooling",
    "MaxUnpool2DBackward0": "the inverse of maximum pooling",
    "MaxUnpool3DBackward0": "the inverse of maximum pooling",
    "ReflectionPad1DBackward0": "padding by reflection",
    "ReflectionPad2DBackward0": "padding by reflection",
    "ReflectionPad3DBackward0": "padding by reflection",
    "UpsampleLinear1DBackward0": "linear interpolation",
    "UpsampleBilinear2DBackward0": "bilinear interpolation",
    "UpsampleBilinear2DAaBackward0": "bilinear interpolation",
    "UpsampleBicubic2DBackward0": "bicubic interpolation",
    "UpsampleBicubic2DAaBackward0": "bicubic interpolation",
    "UpsampleLanczos2DAaBackward0": "Lanczos interpolation",
    "UpsampleTrilinear3DBackward0": "trilinear interpolation",
    "GridSampler2DBackward0": "sampling from a grid",
    "GridSampler3DBackward0": "sampling from a grid",
    "NllLoss2DBackward0": "a loss for each pixel",
    "CtcLossBackward0": "CTC loss",
    "CtcLossBackward1": "CTC loss",
    "MedianBackward1": "a median with its index",
    "PutBackward0": "Tensor.put_",
    "ScatterReduceBackward0": "Tensor.scatter_reduce",
}


def check_deterministic(network: nn.Module, config: Config) -> None:
    """Raises UserError if the run should be deterministic on a GPU and the network cannot be."""
    if not is_deterministic(config) or accelerator_of(config.hardware) == "cpu":
        return
    for layer, operation in nondeterministic_layers(network, config.image_size).items():
        raise UserError(
            f"deterministic=true: layer {layer} of {config.model.name} is {operation}, whose gradient torch cannot"
            " compute in a fixed order on a GPU; choose deterministic=false, hardware=cpu or another network"
        )


def nondeterministic_layers(network: nn.Module, image_size: int) -> dict[str, str]:
    """Module name -> operation, for every operation of NONDETERMINISTIC in the network, which is not changed.

    Runs a forward pass in the network's present mode on the meta device, where shapes are computed but no numbers, so
    it takes neither a GPU nor memory. The autograd graph is built all the same.
    """
    owners = _NodeOwners()
    tensors = [*network.named_parameters(), *network.named_buffers()]
    on_meta = {name: torch.empty_like(t, device="meta").requires_grad_(t.requires_grad) for name, t in tensors}
    handles = [handle for name, module in network.named_modules() for handle in owners.watch(name, module)]
    mode = torch.get_deterministic_debug_mode()
    # torch replaces some interpolations in this mode, as it will in training: the graph must be the one that is
    # trained.
    torch.set_deterministic_debug_mode("warn")
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            # Two images: BatchNorm in training refuses one value per channel, as after global pooling.
            images = torch.empty(2, 3, image_size, image_size, device="meta")
            torch.func.functional_call(network, on_meta, (images,))
    finally:
        torch.set_deterministic_debug_mode(mode)
        for handle in handles:
            handle.remove()
    return {
        layer: NONDETERMINISTIC[node.name()] for node, layer in owners.layers.items() if node.name() in NONDETERMINISTIC
    }


class _NodeOwners:
    """Records which module created each node of the autograd graph, by forward hooks on every module.

    Nodes do not know their module. What is new in the graph between a module's start and end belongs to that module.
    """

    def __init__(self) -> None:
        self.layers: dict[Any, str] = {}
        self.running = [""]

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._claim((args, kwargs))  # inputs computed by the enclosing module belong to that one
            self.running.append(name)

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            self._claim(output)
            self.running.pop()

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    def _claim(self, values: Any) -> None:
        """Assign the unassigned nodes behind these tensors to the module that is running."""
        pending = [value.grad_fn for value in tree_leaves(values) if isinstance(value, Tensor)]
        while pending:
            node = pending.pop()
            if node is not None and node not in self.layers:
                self.layers[node] = self.running[-1]
                pending += [before for before, _ in node.next_functions]

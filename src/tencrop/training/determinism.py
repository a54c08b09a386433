"""Which layers of a network have no deterministic gradient on a GPU. `fit` asks before a run folder is made.

torch itself refuses such an operation only in the middle of the first backward pass.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tencrop.config import Config, UserError, accelerator_of, is_deterministic

# Nodes of the autograd graph -> what they are, after the documentation of torch.use_deterministic_algorithms: what it
# says to raise RuntimeError on CUDA. What it says to become deterministic (convolutions, indexing, scatter_add,
# cumsum, replication padding) is not here; adaptive pooling to 1 x 1 is a mean to torch and has another node.
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
    """Raises UserError for a network that is to be trained deterministically on a GPU and cannot be."""
    if not is_deterministic(config) or accelerator_of(config.hardware) == "cpu":
        return
    for layer, operation in nondeterministic_layers(network, config.image_size).items():
        raise UserError(
            f"deterministic=true: layer {layer} of {config.model.name} is {operation}, whose gradient torch cannot"
            " compute in one order on a GPU; choose deterministic=false, hardware=cpu or another network"
        )


def nondeterministic_layers(network: nn.Module, image_size: int) -> dict[str, str]:
    """Names of the modules with an operation of NONDETERMINISTIC, and the operation; the network is left as it is.

    A forward pass in its present mode on the meta device, where nothing is computed.
    """
    owners = _Owners()
    tensors = [*network.named_parameters(), *network.named_buffers()]
    on_meta = {name: torch.empty_like(t, device="meta").requires_grad_(t.requires_grad) for name, t in tensors}
    handles = [handle for name, module in network.named_modules() for handle in owners.watch(name, module)]
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # torch then computes some interpolations in another way
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            images = torch.empty(2, 3, image_size, image_size, device="meta")
            torch.func.functional_call(network, on_meta, (images,))
    finally:
        torch.set_deterministic_debug_mode(mode)
        for handle in handles:
            handle.remove()
    return {
        layer: NONDETERMINISTIC[node.name()] for node, layer in owners.layers.items() if node.name() in NONDETERMINISTIC
    }


class _Owners:
    """Which module ran each node of the autograd graph, from hooks in front of every module and behind it."""

    def __init__(self) -> None:
        self.layers: dict[Any, str] = {}
        self.running = [""]

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._claim((args, kwargs))  # for the module around this one
            self.running.append(name)

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            self._claim(output)
            self.running.pop()

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    def _claim(self, values: Any) -> None:
        """The nodes behind these tensors that no module has yet are the running one's."""
        pending = [value.grad_fn for value in tree_leaves(values) if isinstance(value, Tensor)]
        while pending:
            node = pending.pop()
            if node is not None and node not in self.layers:
                self.layers[node] = self.running[-1]
                pending += [before for before, _ in node.next_functions]

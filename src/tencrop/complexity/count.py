"""Counts a network's layers as the papers do: sizes, parameters, multiply-adds, units, connections, receptive fields.

Called by networks.py and seeing. One forward pass of one image in eval mode, on the meta device,
where tensors have shapes and no values, so that any network is counted in a second; hooks tell which module runs, and
a TorchDispatchMode sees every operation in it: `a @ b` of an attention counts as much as a module.

What is counted, of one image:
- mult_adds: multiply-adds, not FLOPs (which are twice that): those of convolutions, of linear layers and of products
  of two matrices, also in attention. Biases, normalization, activations, pooling and additions count nothing.
- parameters: what evaluation reads, biases and normalization included; what it does not (auxiliary heads) is apart.
- units: outputs of layers with weights (convolution, linear, and those of LeNet's), not of pooling or normalization.
- connections: the inputs of every unit, a bias being one more (LeCun et al. 1989, 1998); pooling has those of its
  windows. Those that reach over the edge count, as in the papers.
- layers: every convolution, linear layer, pooling and product, by each time that it runs; parameters that belong to
  none of these have rows of their own ("norm", "other").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tencrop.complexity.fields import FieldTracker
from tencrop.complexity.layers import COUNTED, LENET_LAYERS, WITH_UNITS, WITHOUT_PARAMETERS, Layer


@dataclass(frozen=True)
class Complexity:
    """All layers of a network in the order of their runs, and what is in none of them."""

    image_size: int
    layers: list[Layer] = field(repr=False)
    training_parameters: int  # read in training only: auxiliary heads

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def mult_adds(self) -> int:
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def units(self) -> int:
        return sum(layer.units for layer in self.layers if layer.kind in WITH_UNITS)

    @property
    def connections(self) -> int:
        return sum(layer.connections for layer in self.layers)


@torch.no_grad()
def count(network: nn.Module, image_size: int) -> Complexity:
    """The complexity of `network` for one image [1, 3, image_size, image_size]; its mode and weights are left alone.

    The network may lie on any device; on the meta device nothing is computed. Whatever the network raises for images
    of that size is raised.
    """
    was_training = network.training
    some = next(network.parameters())
    images = torch.zeros(1, 3, image_size, image_size, device=some.device, dtype=some.dtype)
    recorder = Recorder(network, images)
    try:
        # one way of computing attention on every device, of operations that can be seen
        with sdpa_kernel(SDPBackend.MATH), recorder.watching(network.eval()), recorder:
            network(images)
    finally:
        network.train(was_training)
    return Complexity(image_size, recorder.layers(), recorder.unread_parameters())


class Recorder(TorchDispatchMode):
    """Sees the operations of a forward pass, and in which module each runs."""

    def __init__(self, network: nn.Module, images: Tensor):
        super().__init__()
        self.names = {module: name for name, module in network.named_modules()}
        self.owners: dict[int, nn.Module] = {}  # of parameters, by id
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), module)
        self.parameters = {id(parameter): parameter for parameter in network.parameters()}
        self.tracker = FieldTracker(images)
        self.running: list[nn.Module] = []
        self.events: list[tuple[nn.Module, int, Layer]] = []  # module, number of its run, what ran
        self.num_runs: dict[nn.Module, int] = {}
        self.first_read: dict[int, int] = {}  # parameter's id -> how many events were before

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """While a network runs."""
        handles = []
        for module in network.modules():
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        self.running.append(module)
        self.num_runs[module] = self.num_runs.get(module, 0) + 1

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        assert self.running.pop() is module
        if isinstance(module, nn.Linear):  # of [N, ..., inputs]; the operation saw a matrix
            ran, run, layer = self.events.pop()
            assert ran is module
            layer = replace(layer, output=tuple(output.shape[1:]), field=self.tracker.field(output))
            self.events.append((module, run, layer))
        if type(module) in LENET_LAYERS:
            mine = [event for event in self.events if event[0] is module and event[1] == self.num_runs[module]]
            self.events = [event for event in self.events if event not in mine]
            layer = mine[0][2] if mine else Layer(self.names[module], "other", tuple(output.shape[1:]))
            layer = replace(layer, field=self.tracker.field(output))
            self.events.append((module, self.num_runs[module], LENET_LAYERS[type(module)](module, inputs[0], layer)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.parameters:
                self.first_read.setdefault(id(leaf), len(self.events))
        before = [self.tracker.field(leaf) for leaf in args if isinstance(leaf, Tensor)]
        self.tracker.follow(func, args, kwargs, output)
        if func.overloadpacket in COUNTED:
            layer = COUNTED[func.overloadpacket](output, before, *args, **kwargs)
            if layer is not None:
                self._record(layer, output if isinstance(output, Tensor) else output[0])
        return output

    def _record(self, layer: Layer, output: Tensor) -> None:
        module = self.running[-1]
        if layer.bias_connections == 0 and isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            layer = replace(layer, bias_connections=layer.units, connections=layer.connections + layer.units)
        if layer.kind == "product" and isinstance(module, nn.Linear):
            layer = replace(layer, kind="linear")
        layer = replace(layer, name=self.names[module], field=self.tracker.field(output))
        run = self.num_runs[module]
        if layer.kind == "product":  # all of a run are one row: the two of an attention
            for number, (other, other_run, previous) in enumerate(self.events):
                if other is module and other_run == run and previous.kind == "product":
                    layer = replace(layer, mult_adds=layer.mult_adds + previous.mult_adds,
                                    connections=layer.connections + previous.connections)  # fmt: skip
                    self.events[number] = (module, run, layer)
                    return
        self.events.append((module, run, layer))

    def layers(self) -> list[Layer]:
        """The rows, with every parameter that was read in exactly one of them."""
        owned: dict[nn.Module, list[int]] = {}
        for key in self.first_read:
            owned.setdefault(self.owners[key], []).append(key)
        rows: list[tuple[float, Layer]] = []
        for number, (module, run, layer) in enumerate(self.events):
            own = owned.pop(module, []) if layer.kind not in WITHOUT_PARAMETERS else []
            name = (layer.name or f"({layer.kind})") + (f"({run})" if run > 1 else "")
            parameters, biases = self._sizes(own)
            rows.append((number, replace(layer, name=name, parameters=parameters, biases=biases)))
        for module, own in owned.items():
            is_norm = "norm" in type(module).__name__.lower()
            names = [name for name, p in module.named_parameters(recurse=False) if id(p) in own]
            path = self.names[module] + ("" if is_norm else f".{'+'.join(names)}")
            parameters, biases = self._sizes(own)
            kind = "norm" if is_norm else "other"
            row = Layer(path.lstrip("."), kind, (), parameters=parameters, biases=biases)
            rows.append((min(self.first_read[key] for key in own) - 0.5, row))
        return [layer for _, layer in sorted(rows, key=lambda row: row[0])]

    def _sizes(self, keys: Sequence[int]) -> tuple[int, int]:
        """How many numbers these parameters have, and how many of them are biases."""
        names = {id(p): name for key in keys for name, p in self.owners[key].named_parameters(recurse=False)}
        sizes = {key: self.parameters[key].numel() for key in keys}
        return sum(sizes.values()), sum(size for key, size in sizes.items() if names[key].endswith("bias"))

    def unread_parameters(self) -> int:
        return sum(p.numel() for key, p in self.parameters.items() if key not in self.first_read)

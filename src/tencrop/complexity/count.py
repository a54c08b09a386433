"""Count a network layer by layer as papers do: sizes, parameters, multiply-adds, units, connections, receptive fields.

Runs one forward pass of one image in eval mode on the meta device, where tensors have shapes but no values, so that any
network takes about a second. Hooks tell which module runs. A TorchDispatchMode sees every operation inside it, so that
the `a @ b` of attention counts as well as a module; hooks alone, as in many FLOP counters, miss it.

Counts for one image:
- mult_adds: multiply-adds, not FLOPs (twice as many), of convolutions, linear layers and matrix products, including
  attention. Biases, normalization, activations, pooling and additions count as 0.
- parameters: those that evaluation reads, including biases and normalization. training_parameters has the others
  (auxiliary heads).
- units: outputs of layers with weights (convolutions, linear layers, LeNet's own layers); not of pooling or
  normalization.
- connections: inputs of every unit, plus one for a bias (LeCun et al. 1989, 1998). Pooling counts the inputs of its
  windows. Connections into the padding count, as in the papers.
- layers: one row per call of a convolution, linear layer, pooling or matrix product. Parameters of other layers have
  rows of their own ("norm", "other").
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
from tencrop.models.normalization import is_normalization


@dataclass(frozen=True)
class Complexity:
    """All layers of a network in the order of their calls, with totals."""

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
    """Count `network` for one image [1, 3, image_size, image_size]; restores its mode and leaves its weights alone.

    The network may be on any device; on the meta device nothing is computed. Exceptions of the network, such as those
    for images of a wrong size, are passed on.
    """
    was_training = network.training
    some = next(network.parameters())
    images = torch.zeros(1, 3, image_size, image_size, device=some.device, dtype=some.dtype)
    recorder = Recorder(network, images)
    try:
        # The math backend consists of visible matrix products. A fused kernel would be one opaque operation, and the
        # choice of kernel depends on the device.
        with sdpa_kernel(SDPBackend.MATH), recorder.watching(network.eval()), recorder:
            network(images)
    finally:
        network.train(was_training)
    return Complexity(image_size, recorder.layers(), recorder.unread_parameters())


class Recorder(TorchDispatchMode):
    """Records the operations of a forward pass and the module in which each runs."""

    def __init__(self, network: nn.Module, images: Tensor):
        super().__init__()
        self.names = {module: name for name, module in network.named_modules()}
        # by id: on a hash collision a dictionary of tensors would call `==`, which is elementwise
        self.owners: dict[int, nn.Module] = {}  # parameter's id -> the first module that has it
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), module)
        self.parameters = {id(parameter): parameter for parameter in network.parameters()}
        self.tracker = FieldTracker(images)
        self.running: list[nn.Module] = []  # the stack of modules whose forward has begun
        self.events: list[tuple[nn.Module, int, Layer]] = []  # module, number of its call, layer
        self.num_runs: dict[nn.Module, int] = {}
        self.first_read: dict[int, int] = {}  # parameter's id -> number of events before its first use

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Context in which hooks track the running module."""
        handles = []  # removed afterward, so that the network can be trained or pickled
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
        if isinstance(module, nn.Linear):  # torch flattens [N, ..., inputs] to a matrix: restore the output's shape
            ran, run, layer = self.events.pop()
            assert ran is module
            layer = replace(layer, output=tuple(output.shape[1:]), field=self.tracker.field(output))
            self.events.append((module, run, layer))
        if type(module) in LENET_LAYERS:  # replace the operations inside by one row with the paper's counts
            mine = [event for event in self.events if event[0] is module and event[1] == self.num_runs[module]]
            self.events = [event for event in self.events if event not in mine]
            layer = mine[0][2] if mine else Layer(self.names[module], "other", tuple(output.shape[1:]))
            layer = replace(layer, field=self.tracker.field(output))
            self.events.append((module, self.num_runs[module], LENET_LAYERS[type(module)](module, inputs[0], layer)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        # "read" rather than "owned": auxiliary heads own parameters that evaluation never uses
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.parameters:
                self.first_read.setdefault(id(leaf), len(self.events))
        # before follow(): an operation in place would replace the fields of its inputs
        before = [self.tracker.field(leaf) for leaf in args if isinstance(leaf, Tensor)]
        self.tracker.follow(func, args, kwargs, output)
        if func.overloadpacket in COUNTED:
            layer = COUNTED[func.overloadpacket](output, before, *args, **kwargs)
            if layer is not None:
                self._record(layer, output if isinstance(output, Tensor) else output[0])
        return output

    def _record(self, layer: Layer, output: Tensor) -> None:
        module = self.running[-1]
        # the bias may be added by a separate operation, which has no row
        if layer.bias_connections == 0 and isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            layer = replace(layer, bias_connections=layer.units, connections=layer.connections + layer.units)
        if layer.kind == "product" and isinstance(module, nn.Linear):
            layer = replace(layer, kind="linear")
        layer = replace(layer, name=self.names[module], field=self.tracker.field(output))
        run = self.num_runs[module]
        if layer.kind == "product":  # one row per call: attention has two products, q @ k and weights @ v
            for number, (other, other_run, previous) in enumerate(self.events):
                if other is module and other_run == run and previous.kind == "product":
                    layer = replace(layer, mult_adds=layer.mult_adds + previous.mult_adds,
                                    connections=layer.connections + previous.connections)  # fmt: skip
                    self.events[number] = (module, run, layer)
                    return
        self.events.append((module, run, layer))

    def layers(self) -> list[Layer]:
        """All rows in order; every parameter that was read is in exactly one of them."""
        owned: dict[nn.Module, list[int]] = {}
        for key in self.first_read:
            owned.setdefault(self.owners[key], []).append(key)
        rows: list[tuple[float, Layer]] = []
        for number, (module, run, layer) in enumerate(self.events):
            # pop: the first call gets the parameters, later calls of a shared layer none
            own = owned.pop(module, []) if layer.kind not in WITHOUT_PARAMETERS else []
            name = (layer.name or f"({layer.kind})") + (f"({run})" if run > 1 else "")
            parameters, biases = self._sizes(own)
            rows.append((number, replace(layer, name=name, parameters=parameters, biases=biases)))
        for module, own in owned.items():  # modules whose operations have no row: normalization, embeddings, scales
            is_norm = is_normalization(module)
            names = [name for name, p in module.named_parameters(recurse=False) if id(p) in own]
            path = self.names[module] + ("" if is_norm else f".{'+'.join(names)}")
            parameters, biases = self._sizes(own)
            kind = "norm" if is_norm else "other"
            row = Layer(path.lstrip("."), kind, (), parameters=parameters, biases=biases)
            # just before the row that followed their first use
            rows.append((min(self.first_read[key] for key in own) - 0.5, row))
        return [layer for _, layer in sorted(rows, key=lambda row: row[0])]

    def _sizes(self, keys: Sequence[int]) -> tuple[int, int]:
        """Number of elements of these parameters, and how many of them are biases."""
        names = {id(p): name for key in keys for name, p in self.owners[key].named_parameters(recurse=False)}
        sizes = {key: self.parameters[key].numel() for key in keys}
        return sum(sizes.values()), sum(size for key, size in sizes.items() if names[key].endswith("bias"))

    def unread_parameters(self) -> int:
        return sum(p.numel() for key, p in self.parameters.items() if key not in self.first_read)

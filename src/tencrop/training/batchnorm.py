"""Ghost BatchNorm: normalize groups of a fixed number of samples, on any number of devices and micro-batches.

With plain BatchNorm, what is learned depends on how many samples happen to be on a device. Here the recipe fixes the
group size (`model.bn_group`). The classifier calls `set_groups` once, `GroupStatistics.collect` after the forward pass
of each micro-batch, and `GroupStatistics.update` after each optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import Batches, UserError
from tencrop.data.augmentation.batch import Batch

# Exactly these types: a subclass may compute something else, which the replacement in set_groups would drop silently.
GROUPABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def set_groups(model: nn.Module, batches: Batches) -> nn.Module:
    """Make the model's BatchNorm layers normalize the groups in `batches`. The names of weights do not change.

    ghost: consecutive groups of a micro-batch, each with its own mean and variance. sync: one group over all devices.
    Raises UserError for a BatchNorm that cannot be split into groups. If the batch is divided, it also raises for any
    other layer with running statistics, because these would come from one device's last micro-batches only.
    """
    _refuse_other_statistics(model, batches)
    if batches.bn == "none":
        return model
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    for name, layer in layers:
        if type(layer) not in GROUPABLE or layer.momentum is None or not layer.track_running_stats:
            raise UserError(
                f"model.bn_group: layer {name} of the model is a {type(layer).__name__} with"
                f" momentum={layer.momentum}, which cannot be split into groups or joined over devices;"
                " choose another network"
            )
    if batches.bn == "sync":
        return convert_sync_batchnorm(model)
    for _, layer in layers:
        # Change the class in place: a new layer would need weights, buffers, hooks and activation moved over. The new
        # class is a subclass of the layer's own type, so that isinstance checks elsewhere still hold.
        layer.__class__ = type(f"Ghost{type(layer).__name__}", (GhostBatchNorm, type(layer)), {})
        assert isinstance(layer, GhostBatchNorm)
        layer.prepare(batches.micro_batch // batches.bn_groups, batches.bn_groups)
    return model


@torch.no_grad()
def check_single_samples(model: nn.Module, name: str, size: int) -> None:
    """Raise UserError if BatchNorm has one value per channel of a sample, which has no variance; for model.bn_group=1.

    size: of the smallest training crop. Runs one forward pass of a black image on the CPU.
    """

    def check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            raise UserError(
                f"model.bn_group=1: {name} normalizes maps of 1 x 1 at {size} x {size} pixels, and a single value has"
                " no variance; set model.bn_group to 2 or more, or choose larger images"
            )

    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(check) for layer in layers]
    was_training = model.training
    try:
        with torch.random.fork_rng(devices=[]):  # a network may draw in eval mode, too
            model.eval()(torch.zeros(1, 3, size, size))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def _refuse_other_statistics(model: nn.Module, batches: Batches) -> None:
    if batches.num_devices * batches.accumulate_grad_batches == 1:
        return  # the whole batch in one forward pass: any layer sees what its author intended
    for name, layer in model.named_modules():
        buffers = [buffer for buffer, _ in layer.named_buffers(recurse=False) if buffer.startswith("running_")]
        if buffers and not isinstance(layer, _BatchNorm):
            raise UserError(
                f"model.name: layer {name} of the model is a {type(layer).__name__}, whose {buffers[0]} would depend on"
                f" the layout of the batch ({batches.num_devices} devices,"
                f" {batches.accumulate_grad_batches} micro-batches each); use one device and one micro-batch"
            )


class GhostBatchNorm(_BatchNorm):
    """Mixin for a BatchNorm layer: in training, each group of a micro-batch is normalized separately.

    Ghost Batch Normalization of Hoffer et al. 2017, with one difference. There, as in torch, running statistics move
    once for each group in turn. Here they move once for each optimizer step, and all groups of the step have the same
    weight: running <- (1 - momentum) * running + momentum * (mean over the step's groups). So they do not depend on
    the layout on devices and micro-batches.
    """

    group_size: int
    num_groups: int  # of a micro-batch
    num_filled: int  # of these, since the last collect(): 0 before every forward pass
    means: Tensor  # of the groups of the latest micro-batch: [num_groups, C], or [C] for a single group
    variances: Tensor  # same shape; unbiased, as torch's running_var

    def prepare(self, group_size: int, num_groups: int) -> None:
        """group_size: in samples; num_groups: in a micro-batch."""
        assert self.running_mean is not None
        self.group_size, self.num_groups, self.num_filled = group_size, num_groups, 0
        shape = (self.num_features,) if num_groups == 1 else (num_groups, self.num_features)
        self.register_buffer("means", self.running_mean.new_zeros(shape), persistent=False)
        self.register_buffer("variances", self.running_mean.new_zeros(shape), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # LeViT folds the tokens of each sample into rows, [B * N, C], so a group is still consecutive.
        num_rows, remainder = divmod(len(input), self.group_size * self.num_groups)  # rows of a sample
        assert num_rows > 0 and remainder == 0, (len(input), self.group_size, self.num_groups)
        # Not a count over the optimizer step: torch.compile would compile the network again for each of its values.
        self.num_filled += self.num_groups
        if self.num_groups == 1:
            output = self._normalize(input, self.means, self.variances)
        else:
            # A loop, because a call of F.batch_norm has one mean for each channel. Folding the groups into the channels
            # would need one call only, but a copy of the activations in channels_last layout.
            parts = zip(
                input.split(self.group_size * num_rows), self.means.unbind(), self.variances.unbind(), strict=True
            )
            output = torch.cat([self._normalize(*part) for part in parts])
        return self.act(self.drop(output)) if isinstance(self, BatchNormAct2d) else output

    def _normalize(self, group: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        # With momentum 1, F.batch_norm writes the group's own mean and unbiased variance to its "running" tensors: the
        # statistics come out of the kernel that normalizes, without another pass over the activations.
        return F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)


class GroupStatistics:
    """Means and variances of all groups of one optimizer step on this device, for the running statistics of a network.

    The operations work on all layers, or all layers of one width, at once: a GPU that trains on 32 images waits for the
    launch of each kernel. ResNet-50 has 106 of these tensors and 6 widths.
    """

    def __init__(self, network: nn.Module, *, num_micro_batches: int):
        self.layers = [layer for layer in network.modules() if isinstance(layer, GhostBatchNorm)]
        self.num_micro_batches = num_micro_batches
        # for each micro-batch of the step, width C -> [tensors, groups, C]: a layer's means, then its variances
        self.collected: list[dict[int, Tensor]] = []

    @torch.no_grad()
    def collect(self) -> None:
        """Keep the statistics of the micro-batch that the network has just run; the next one overwrites them."""
        layers = self._training_layers()
        if not layers:
            return
        for layer in layers:
            assert layer.num_filled == layer.num_groups, "an optimizer step must run every group of the device once"
            layer.num_filled = 0
        self.collected.append({} if self._is_single_group(layers) else _stacked(layers))

    @torch.no_grad()
    def update(self) -> None:
        """Move the running statistics towards the mean over all groups, of all ranks, of this optimizer step.

        All ranks must call this after every optimizer step. Running statistics are then equal on all ranks at every
        step: nothing has to be averaged for a checkpoint or an evaluation, and their rounding does not depend on when
        one happens.
        """
        layers = self._training_layers()
        if not layers:
            return
        targets = iter(all_reduce_batchnorm_statistics(self._step_means(layers)))
        running: dict[float, tuple[list[Tensor], list[Tensor]]] = {}  # momentum -> (statistics, targets)
        for layer in layers:
            assert layer.running_mean is not None and layer.running_var is not None and layer.momentum is not None
            statistics, moves_to = running.setdefault(layer.momentum, ([], []))
            statistics += [layer.running_mean, layer.running_var]
            moves_to += [next(targets), next(targets)]
        for momentum, (statistics, moves_to) in running.items():
            torch._foreach_lerp_(statistics, moves_to, momentum)
        torch._foreach_add_([layer.num_batches_tracked for layer in layers], 1)  # type: ignore[misc]

    def _training_layers(self) -> list[GhostBatchNorm]:
        # a frozen layer is in eval mode (training/freezing.py), and has run no groups
        return [layer for layer in self.layers if layer.training]

    def _is_single_group(self, layers: list[GhostBatchNorm]) -> bool:
        return self.num_micro_batches == 1 and all(layer.num_groups == 1 for layer in layers)

    def _step_means(self, layers: list[GhostBatchNorm]) -> list[Tensor]:
        """For each layer its mean, then its variance, averaged over the groups of the step on this device."""
        assert len(self.collected) == self.num_micro_batches, "an optimizer step must run every micro-batch once"
        collected, self.collected = self.collected, []
        if self._is_single_group(layers):
            return [tensor for layer in layers for tensor in (layer.means, layer.variances)]
        # The mean over dimension 1 has the bits of a mean for each tensor: tests/training/test_batchnorm.py.
        means = {
            width: iter(torch.cat([part[width] for part in collected], dim=1).mean(1).unbind())
            for width in collected[0]
        }
        return [next(means[layer.num_features]) for layer in layers for _ in range(2)]


def _stacked(layers: Iterable[GhostBatchNorm]) -> dict[int, Tensor]:
    """Width C -> copies of the statistics of all layers of this width, [2 * layers, groups, C]."""
    tensors: dict[int, list[Tensor]] = {}
    for layer in layers:
        tensors.setdefault(layer.num_features, []).extend((layer.means, layer.variances))
    return {width: torch.stack(parts).view(len(parts), -1, width) for width, parts in tensors.items()}


@torch.no_grad()
def set_exact_statistics(
    networks: Sequence[nn.Module],
    micro_batches: Iterable[Batch],
    forward: Callable[[nn.Module, Batch, int], object],
    *,
    accumulate_grad_batches: int,
) -> None:
    """Make the running statistics plain means over the groups of `micro_batches`, instead of moving averages.

    Precise BatchNorm (pycls; He et al. 2015, section 3.4, unverified): of the mean and the unbiased variance of each
    group. forward(network, batch, number) runs a network, in train mode, on micro-batch `number`. All ranks must call
    this, with the same number of micro-batches.
    """
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, _BatchNorm)]
    momenta = {layer: layer.momentum for layer in layers if layer.training}
    statistics = [GroupStatistics(network, num_micro_batches=accumulate_grad_batches) for network in networks]
    for number, batch in enumerate(micro_batches):
        step, part = divmod(number, accumulate_grad_batches)
        for layer in momenta:
            # Momenta of 1, 1/2, 1/3, ... make a mean of the moving average. Ghost layers move once for each global
            # batch, synchronized ones in every forward pass.
            layer.momentum = 1 / (1 + (step if isinstance(layer, GhostBatchNorm) else number))
        for network, of_network in zip(networks, statistics, strict=True):
            forward(network, batch, number)
            of_network.collect()
            if part == accumulate_grad_batches - 1:
                of_network.update()
    for layer, momentum in momenta.items():
        layer.momentum = momentum


def all_reduce_batchnorm_statistics(tensors: list[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all ranks. All ranks must call this, with tensors of the same shapes.

    Concatenates everything into a single all-reduce. A network has a hundred or more of these tensors, most of a few
    hundred numbers (ResNet-50: 106 tensors with 53,120 numbers in total); an all-reduce for each would be bound by
    latency.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

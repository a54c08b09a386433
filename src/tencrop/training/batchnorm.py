"""BatchNorm over groups of the recipe's size, whatever the layout of the batch on the devices [7].

Called by the classifier: `set_groups` once, `update_running_statistics` at every optimizer step,
`average_over_ranks` before every evaluation and checkpoint.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tencrop.config import Batches, UserError

GROUPABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def set_groups(model: nn.Module, batches: Batches) -> nn.Module:
    """The model whose BatchNorm layers normalise the groups that `batches` says; names of weights stay.

    ghost: consecutive groups of a micro-batch, each by its own mean and variance. sync: one group over all devices.
    Raises UserError for a kind of BatchNorm that is not known to be separable.
    """
    if batches.bn == "none":
        return model
    if batches.bn == "sync":
        return convert_sync_batchnorm(model)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in GROUPABLE or layer.momentum is None or not layer.track_running_stats:
            raise UserError(
                f"model.bn_group: layer {name} of the model is a {type(layer).__name__} with"
                f" momentum={layer.momentum}, which cannot be split into groups"
            )
        layer.__class__ = type(f"Ghost{type(layer).__name__}", (GhostBatchNorm, type(layer)), {})
        assert isinstance(layer, GhostBatchNorm)
        layer.prepare(batches.micro_batch // batches.bn_groups, batches.bn_groups * batches.accumulate)
    return model


class GhostBatchNorm(_BatchNorm):
    """Mixed into a BatchNorm layer: in training, groups of a micro-batch are normalised apart (Hoffer et al. 2017).

    torch updates running statistics once a forward pass; here all groups of an optimizer step count alike, and the
    statistics move once a step: running <- (1 - momentum) * running + momentum * (mean over the step's groups).
    """

    group_size: int
    num_filled: int
    means: Tensor  # [groups a step, C], of this device
    variances: Tensor

    def prepare(self, group_size: int, num_groups: int) -> None:
        """group_size: samples; num_groups: groups of one optimizer step on this device, over its micro-batches."""
        assert self.running_mean is not None
        self.group_size, self.num_filled = group_size, 0
        shape = (num_groups, self.num_features)
        self.register_buffer("means", self.running_mean.new_zeros(shape), persistent=False)
        self.register_buffer("variances", self.running_mean.new_zeros(shape), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert len(input) % self.group_size == 0, (len(input), self.group_size)
        parts = [self._normalize(part) for part in input.split(self.group_size)]
        output = torch.cat(parts) if len(parts) > 1 else parts[0]
        return self.act(self.drop(output)) if isinstance(self, BatchNormAct2d) else output

    def _normalize(self, group: Tensor) -> Tensor:
        # With momentum 1 torch leaves the group's own mean and unbiased variance in the "running" tensors.
        mean, variance = self.means[self.num_filled], self.variances[self.num_filled]
        self.num_filled += 1
        return F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)


@torch.no_grad()
def update_running_statistics(model: nn.Module) -> None:
    """Once an optimizer step: the running statistics move towards the mean over the step's groups."""
    layers = [layer for layer in model.modules() if isinstance(layer, GhostBatchNorm)]
    running: dict[float, list[Tensor]] = {}
    targets: dict[float, list[Tensor]] = {}
    for layer in layers:
        assert layer.num_filled == len(layer.means), "a step runs every group of the device once"
        assert layer.running_mean is not None and layer.running_var is not None and layer.momentum is not None
        layer.num_filled = 0
        running.setdefault(layer.momentum, []).extend((layer.running_mean, layer.running_var))
        targets.setdefault(layer.momentum, []).extend((layer.means.mean(0), layer.variances.mean(0)))
    for momentum in running:
        torch._foreach_lerp_(running[momentum], targets[momentum], momentum)
    if layers:
        torch._foreach_add_([layer.num_batches_tracked for layer in layers], 1)  # type: ignore[misc]


@torch.no_grad()
def average_over_ranks(model: nn.Module) -> None:
    """Running statistics become their mean over the ranks, in place.

    They are linear in the groups' statistics, so the mean over ranks is what one device would hold.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    tensors = [part for layer in layers for part in (layer.running_mean, layer.running_var) if part is not None]
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

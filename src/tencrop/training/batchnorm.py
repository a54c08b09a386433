"""BatchNorm over groups of the recipe's size, whatever the layout of the batch on the devices.

Called by the classifier: `set_groups` once, `update_running_statistics` at every optimizer step.
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
    """The model whose BatchNorm layers normalize the groups that `batches` says; names of weights stay.

    ghost: consecutive groups of a micro-batch, each by its own mean and variance. sync: one group over all devices.
    Raises UserError for a kind of BatchNorm that is not known to be separable, and for another layer with running
    statistics where the batch is divided: they would be those of a device's last micro-batches.
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
        layer.__class__ = type(f"Ghost{type(layer).__name__}", (GhostBatchNorm, type(layer)), {})
        assert isinstance(layer, GhostBatchNorm)
        layer.prepare(batches.micro_batch // batches.bn_groups, batches.bn_groups * batches.accumulate_grad_batches)
    return model


def _refuse_other_statistics(model: nn.Module, batches: Batches) -> None:
    if batches.num_devices * batches.accumulate_grad_batches == 1:
        return
    for name, layer in model.named_modules():
        buffers = [buffer for buffer, _ in layer.named_buffers(recurse=False) if buffer.startswith("running_")]
        if buffers and not isinstance(layer, _BatchNorm):
            raise UserError(
                f"model.name: layer {name} of the model is a {type(layer).__name__}, whose {buffers[0]} would depend on"
                f" the layout of the batch ({batches.num_devices} devices,"
                f" {batches.accumulate_grad_batches} micro-batches each); use one device and one micro-batch"
            )


class GhostBatchNorm(_BatchNorm):
    """Mixed into a BatchNorm layer: in training, groups of a micro-batch are normalized apart (Hoffer et al. 2017).

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
    """Once an optimizer step: the running statistics move towards the mean over the step's groups of all ranks.

    They are the same on every rank at every step, so a checkpoint or an evaluation need not average anything, and
    rounding does not depend on when one falls.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GhostBatchNorm)]
    if not layers:
        return
    step_means: list[Tensor] = []  # over the groups: of each layer its mean, then its variance
    for layer in layers:
        assert layer.num_filled == len(layer.means), "a step runs every group of the device once"
        layer.num_filled = 0
        step_means += [layer.means.mean(0), layer.variances.mean(0)]
    targets = iter(all_reduce_batchnorm_statistics(step_means))
    running: dict[float, tuple[list[Tensor], list[Tensor]]] = {}  # momentum -> statistics, what they move towards
    for layer in layers:
        assert layer.running_mean is not None and layer.running_var is not None and layer.momentum is not None
        statistics, moves_to = running.setdefault(layer.momentum, ([], []))
        statistics += [layer.running_mean, layer.running_var]
        moves_to += [next(targets), next(targets)]
    for momentum, (statistics, moves_to) in running.items():
        torch._foreach_lerp_(statistics, moves_to, momentum)
    torch._foreach_add_([layer.num_batches_tracked for layer in layers], 1)  # type: ignore[misc]


def all_reduce_batchnorm_statistics(tensors: list[Tensor]) -> list[Tensor]:
    """The mean over the ranks of each tensor; all ranks must call this, with tensors of the same shapes.

    One all-reduce of all of them behind one another: a network has a hundred and more, most of a few hundred numbers
    (ResNet-50: 106 tensors, together 53,120 numbers), and each all-reduce of its own would wait for every rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

"""Builds the network that a configuration names: timm's, torchvision's, or one of ours (registered with timm).

Called by train.py and evaluate.py.
"""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import tencrop.models.alexnet
import tencrop.models.allcnn
import tencrop.models.lenet
import tencrop.models.nin
import tencrop.models.vgg
import tencrop.models.zfnet  # noqa: F401  each registers its names with timm
from tencrop.config import Model, UserError


def build_model(model: Model, *, num_classes: int, image_size: int | None = None) -> nn.Module:
    """The network with freshly drawn weights from torch's global generator, [N, 3, H, W] -> logits [N, num_classes].

    Raises UserError for an unknown name, arguments that its constructor does not take, a bn_group that the network
    does not need or lacks, and, where image_size is given, images of a size that it cannot take.
    """
    try:
        if model.name.startswith("torchvision/"):
            name = model.name.removeprefix("torchvision/")
            network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **model.kwargs)
        else:
            network = timm.create_model(model.name, pretrained=False, num_classes=num_classes, **model.kwargs)
    except Exception as error:  # each library has its own
        raise UserError(f"model.name={model.name} with model.kwargs={model.kwargs}: {error}") from error
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
    if has_batch_norm and model.bn_group is None:
        raise UserError(
            f"model.bn_group=null: {model.name} has BatchNorm; say how many samples it normalises together, 32 is usual"
        )
    if not has_batch_norm and model.bn_group is not None:
        raise UserError(f"model.bn_group={model.bn_group}: {model.name} has no BatchNorm; set model.bn_group=null")
    if image_size is not None:
        _try_input(network, model.name, image_size)
    return network


@torch.no_grad()
def _try_input(network: nn.Module, name: str, image_size: int) -> None:
    was_training = network.training
    try:
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # whatever the first layer that does not fit says
        raise UserError(
            f"image_size={image_size}: {name} does not take images of {image_size} x {image_size} pixels ({error});"
            " choose its own size, or give one with +model.kwargs.img_size where it has that argument"
        ) from error
    finally:
        network.train(was_training)

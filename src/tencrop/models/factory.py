"""Builds the network that a configuration names: timm's, torchvision's, or one of ours (registered with timm).

Called by train.py and evaluate.py.
"""

from __future__ import annotations

import copy

import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import tencrop.models.alexnet
import tencrop.models.allcnn
import tencrop.models.densenet
import tencrop.models.fractalnet
import tencrop.models.googlenet
import tencrop.models.inception
import tencrop.models.lenet
import tencrop.models.mobilenet
import tencrop.models.nin
import tencrop.models.resnet
import tencrop.models.resnext
import tencrop.models.squeezenet
import tencrop.models.stochastic_depth
import tencrop.models.vgg
import tencrop.models.vit
import tencrop.models.wide_resnet
import tencrop.models.zfnet  # noqa: F401  each registers its names with timm
from tencrop.config import Model, UserError
from tencrop.models.last_layer import score_in_float32


def build_model(model: Model, *, num_classes: int, image_size: int | None = None) -> nn.Module:
    """The network with freshly drawn weights from torch's global generator, [N, 3, H, W] -> logits [N, num_classes].

    In eval mode its last layer computes in float32 under autocast too. Raises UserError for an unknown name, arguments
    that its constructor does not take and, where image_size is given, what it cannot be trained on: a bn_group that it
    does not need or lacks, images of that size, or auxiliary heads whose weight in the loss is not said.
    """
    network = create_network(model, num_classes=num_classes)
    score_in_float32(network, num_classes)
    if image_size is not None:
        _check_bn_group(network, model)
        if getattr(network, "aux_logits", False) and not hasattr(network, "auxiliary_weight"):  # their libraries' own
            raise UserError(
                f"model.name={model.name}: has auxiliary heads, whose weight in the loss is not known; choose"
                " inception_v3_aux or googlenet_2014, or add +model.kwargs.aux_logits=false"
            )
        check_image_size(network, model.name, image_size, for_training=True)
    return network


def _check_bn_group(network: nn.Module, model: Model) -> None:
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
    if has_batch_norm and model.bn_group is None:
        raise UserError(
            f"model.bn_group=null: {model.name} has BatchNorm; say how many samples it normalizes together, 32 is usual"
        )
    if not has_batch_norm and model.bn_group is not None:
        raise UserError(f"model.bn_group={model.bn_group}: {model.name} has no BatchNorm; set model.bn_group=null")


def create_network(model: Model, *, num_classes: int) -> nn.Module:
    """The network that `model` names, whatever else is said of it. Raises UserError for a name or arguments that the
    libraries do not take."""
    try:
        if model.name.startswith("torchvision/"):
            name = model.name.removeprefix("torchvision/")
            return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **model.kwargs)
        return timm.create_model(model.name, pretrained=False, num_classes=num_classes, **model.kwargs)
    except Exception as error:  # each library has its own
        raise UserError(f"model.name={model.name} with model.kwargs={model.kwargs}: {error}") from error


@torch.no_grad()
def check_image_size(
    network: nn.Module, name: str, size: int, *, key: str = "image_size", for_training: bool = False
) -> None:
    """Raises UserError where the network does not take images of size x size pixels; `key` is where the user said so.

    A forward pass of one black image on the CPU: 0.1 s for ResNet-50, 3 s for ViT-L/16 at 384. Neither weights nor
    running statistics nor torch's generator are touched. for_training: auxiliary heads must take them, too.
    """
    was_training = network.training
    if for_training and hasattr(network, "auxiliary_weight"):
        network, num_images = copy.deepcopy(network).train(), 2  # BatchNorm in training wants two
    else:
        network, num_images = network.eval(), 1
    try:
        with torch.random.fork_rng(devices=[]):
            network(torch.zeros(num_images, 3, size, size))
    except Exception as error:  # whatever the first layer that does not fit says
        raise UserError(
            f"{key}={size}: {name} does not take images of {size} x {size} pixels ({error});"
            " choose its own size, or give one with +model.kwargs.img_size where it has that argument"
        ) from error
    finally:
        network.train(was_training)

"""Build the network that a configuration names: timm's, torchvision's, or one of ours (registered with timm)."""

from __future__ import annotations

import copy

import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Importing a module registers its models with timm. The list is explicit: a module that is not imported does not exist
# for timm.create_model, and a scan of the folder would hide that.
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
import tencrop.models.zfnet  # noqa: F401
from tencrop.config import Model, UserError
from tencrop.models.blur_pool import MIN_CHANNELS, add_blur_pool
from tencrop.models.last_layer import score_in_float32

OWN_SIZE = "choose its own size, or give one with +model.kwargs.img_size if it has that argument"


def build_model(model: Model, *, num_classes: int, image_size: int | None = None) -> nn.Module:
    """Build a randomly initialized network, [N, 3, H, W] -> logits [N, num_classes].

    Weights are drawn from torch's global generator. In eval mode the last layer computes in float32, also under
    autocast. Raises UserError for an unknown name or for arguments that the constructor does not take. If image_size is
    given, also checks that the network can be trained: bn_group is set if and only if there is BatchNorm, the network
    takes images of that size, and the loss weight of its auxiliary heads is known.
    """
    network = create_network(model, num_classes=num_classes)
    score_in_float32(network, num_classes)
    if image_size is not None:
        _check_bn_group(network, model)
        # timm and torchvision leave the loss weight of auxiliary heads to the training script. Our networks carry it as
        # an attribute; guessing one would change what is learned.
        if getattr(network, "aux_logits", False) and not hasattr(network, "auxiliary_weight"):
            raise UserError(
                f"model.name={model.name}: has auxiliary heads whose loss weight is not known; choose"
                " inception_v3_aux or googlenet_2014, or add +model.kwargs.aux_logits=false"
            )
        check_image_size(network, model.name, image_size, for_training=True)
    return network


def _set_batch_norm(network: nn.Module, model: Model) -> None:
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = layer.momentum if model.bn_momentum is None else model.bn_momentum
            layer.eps = layer.eps if model.bn_eps is None else model.bn_eps


def _check_bn_group(network: nn.Module, model: Model) -> None:
    # _BatchNorm is the base class of BatchNorm1d to 3d, SyncBatchNorm and timm's BatchNormAct2d
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
    if has_batch_norm and model.bn_group is None:
        raise UserError(
            f"model.bn_group=null: {model.name} has BatchNorm; set it to the number of samples normalized together,"
            " usually 32"
        )
    if not has_batch_norm and model.bn_group is not None:
        raise UserError(f"model.bn_group={model.bn_group}: {model.name} has no BatchNorm; set model.bn_group=null")


def create_network(model: Model, *, num_classes: int) -> nn.Module:
    """Build the network without the checks and hooks of build_model.

    Raises UserError for a name or arguments that timm or torchvision do not take, and if there is nothing to blur.
    """
    try:
        if model.name.startswith("torchvision/"):
            name = model.name.removeprefix("torchvision/")
            network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **model.kwargs)
        else:
            # never pretrained: a run must not need the internet, nor continue somebody else's training
            network = timm.create_model(model.name, pretrained=False, num_classes=num_classes, **model.kwargs)
    except Exception as error:  # the two libraries raise KeyError, ValueError, RuntimeError, TypeError and more
        raise UserError(f"model.name={model.name} with model.kwargs={model.kwargs}: {error}") from error
    _set_batch_norm(network, model)
    if model.blur_pool and not add_blur_pool(network):
        raise UserError(
            f"model.blur_pool=true: {model.name} has no convolution with a stride above 1 and {MIN_CHANNELS} or more"
            " inputs, so there is nothing to blur; set model.blur_pool=false"
        )
    return network


@torch.no_grad()
def check_image_size(
    network: nn.Module,
    name: str,
    size: int,
    *,
    key: str = "image_size",
    for_training: bool = False,
    remedy: str = OWN_SIZE,
) -> None:
    """Raise UserError if the network does not take images of size x size pixels.

    Runs one forward pass of a black image on the CPU: 0.1 s for ResNet-50, 3 s for ViT-L/16 at 384. Weights, running
    statistics and torch's generator keep their state. `key` names the setting in the error message, which ends in
    `remedy`. for_training: the auxiliary heads must accept the size, too.
    """
    was_training = network.training
    if for_training and hasattr(network, "auxiliary_weight"):
        # Auxiliary heads run in training mode only, where BatchNorm would update its running statistics: use a copy.
        # Two images, because BatchNorm rejects a single value per channel in training.
        network, num_images = copy.deepcopy(network).train(), 2
    else:
        network, num_images = network.eval(), 1
    try:
        # dropout in training mode draws random numbers; without the fork, this check would change the run that follows
        with torch.random.fork_rng(devices=[]):
            network(torch.zeros(num_images, 3, size, size))
    except Exception as error:  # any layer may fail first: RuntimeError from a convolution, AssertionError from timm
        raise UserError(
            f"{key}={size}: {name} does not take images of {size} x {size} pixels ({error}); {remedy}"
        ) from error
    finally:
        network.train(was_training)

"""Rename the weights of torchvision's files to the names that the same network has here.

timm and torchvision use the same names for ResNet, ResNeXt, Wide ResNet, Inception v3 and DenseNet, so most files need
no renaming.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
import torchvision
from torch import Tensor

# Our network -> torchvision's, with the same layers in the same order. squeezenet1_0 is missing because ours equals it
# only with class_padding=0: its file would fit by shape and give other scores. Use torchvision/squeezenet1_0 for it.
SAME_IN_TORCHVISION = {
    "vgg_a": "vgg11",
    "vgg_b": "vgg13",
    "vgg_d": "vgg16",
    "vgg_e": "vgg19",
    "squeezenet_1_1": "squeezenet1_1",
}
# torchvision's DenseNet files still have "norm.1", which its network and timm's call "norm1"
DOTTED = re.compile(r"(?<=\.)(norm|conv)\.([12])(?=\.)")


def to_own_names(state: Mapping[str, Tensor], own: Iterable[str], *, name: str) -> Mapping[str, Tensor]:
    """Return `state` under the names of network `name` if it is torchvision's file of it, else unchanged.

    own: names of the network's state dict, in its order.
    """
    own = list(own)
    if set(state) == set(own):
        return state
    if name in SAME_IN_TORCHVISION:
        theirs = torchvision_names(SAME_IN_TORCHVISION[name])
        if set(state) == set(theirs):  # pair the names by position; the order of a file itself is not reliable
            return {mine: state[its] for mine, its in zip(own, theirs, strict=True)}
    if "densenet" in name:
        undotted = {DOTTED.sub(r"\1\2", key): value for key, value in state.items()}
        if set(undotted) <= set(own):
            return undotted
    return state


def torchvision_names(name: str) -> list[str]:
    """Names of the state dict of torchvision's network, in its order."""
    # on the meta device, so that VGG's 500 MB are neither allocated nor initialized
    with torch.device("meta"):
        return list(torchvision.models.get_model(name, weights=None).state_dict())

"""Weights under another library's names, given the names of the same network here. Called by weights.py.

timm and torchvision name ResNet, ResNeXt, Wide ResNet, Inception v3 and DenseNet alike, so most files need nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
import torchvision
from torch import Tensor

# Ours, and torchvision's network of the same layers in the same order. Its squeezenet1_0 is ours only with
# class_padding=0, so it is left out: choose it as torchvision/squeezenet1_0.
SAME_IN_TORCHVISION = {
    "vgg_a": "vgg11",
    "vgg_b": "vgg13",
    "vgg_d": "vgg16",
    "vgg_e": "vgg19",
    "squeezenet_1_1": "squeezenet1_1",
}
# torchvision's files of DenseNet still say norm.1 where its network, and timm's, say norm1
DOTTED = re.compile(r"(?<=\.)(norm|conv)\.([12])(?=\.)")


def in_own_names(state: Mapping[str, Tensor], own: Iterable[str], *, name: str) -> Mapping[str, Tensor]:
    """`state` under the names `own` of network `name`, where it is torchvision's file of it; else `state` as it is.

    own: the names of the network's state dict, in its order.
    """
    own = list(own)
    if set(state) == set(own):
        return state
    if name in SAME_IN_TORCHVISION:
        theirs = torchvision_names(SAME_IN_TORCHVISION[name])
        if set(state) == set(theirs):
            return {mine: state[its] for mine, its in zip(own, theirs, strict=True)}
    if "densenet" in name:
        undotted = {DOTTED.sub(r"\1\2", key): value for key, value in state.items()}
        if set(undotted) <= set(own):
            return undotted
    return state


def torchvision_names(name: str) -> list[str]:
    """The names of the state dict of torchvision's network, in its order."""
    with torch.device("meta"):
        return list(torchvision.models.get_model(name, weights=None).state_dict())

"""Rename the weights in files of torchvision, of the networks' authors and of other libraries to ours.

timm and torchvision use the same names for ResNet, ResNeXt, Wide ResNet, Inception v3 and DenseNet, and DeiT's authors
use timm's, so most files need no renaming.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
import torchvision
from torch import Tensor

from tencrop.config import UserError

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
# Swin's authors save buffers that are computed from the window size, and timm's network computes again
SWIN_BUFFERS = ("relative_position_index", "attn_mask")
# ConvNeXt's authors' names -> timm's, applied in this order
CONVNEXT_NAMES = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
# ffcv-imagenet wraps a convolution as the child `conv` of a module that also has the kernel; ours is the convolution
# itself, with a child `blur` (blur_pool.py)
FFCV_KERNEL, OUR_KERNEL = ".blur_filter", ".blur.kernel"
COUNTER = ".num_batches_tracked"  # BatchNorm's, which the default momentum does not use
# Last parts of names that tell tensors of the same shape apart: BatchNorm's four are all [C]
ROLES = ("weight", "bias", "running_mean", "running_var")


def to_own_names(state: Mapping[str, Tensor], expected: Iterable[str], *, name: str) -> Mapping[str, Tensor]:
    """Return `state` under the names of network `name` if it is torchvision's or the authors' file of it.

    Returns it unchanged otherwise. expected: names of the network's state dict, in its order.
    """
    expected = list(expected)
    if set(state) == set(expected):
        return state
    if (theirs := same_in_torchvision(state, name=name)) is not None:
        # pair the names by position; the order of a file itself is not reliable
        return {mine: state[its] for mine, its in zip(expected, torchvision_names(theirs), strict=True)}
    if "densenet" in name:
        undotted = {DOTTED.sub(r"\1\2", key): value for key, value in state.items()}
        if set(undotted) <= set(expected):
            return undotted
    for authors_names in (_of_swins_authors, _of_convnexts_authors, _of_ffcv_imagenet):
        if set(renamed := authors_names(state)) == set(expected):
            return renamed
    return state


def same_in_torchvision(state: Mapping[str, Tensor], *, name: str) -> str | None:
    """torchvision's name of our network `name` if `state` has the names of torchvision's version, else None."""
    theirs = SAME_IN_TORCHVISION.get(name)
    return theirs if theirs is not None and set(state) == set(torchvision_names(theirs)) else None


def pair_by_order(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str, name: str
) -> dict[str, str]:
    """The network's names -> the file's, for two state dicts with the same shapes in the same order.

    Raises UserError for the first tensor whose shape differs, or whose name ends in another of ROLES. BatchNorm's
    counters are left out if only one of the two has them.
    """
    if any(key.endswith(COUNTER) for key in state) != any(key.endswith(COUNTER) for key in expected):
        state, expected = ({k: v for k, v in one.items() if not k.endswith(COUNTER)} for one in (state, expected))
    for number, (mine, its) in enumerate(zip(expected, state, strict=False), start=1):
        shapes = list(state[its].shape), list(expected[mine].shape)
        roles = its.rpartition(".")[2], mine.rpartition(".")[2]
        if shapes[0] != shapes[1] or (roles[0] != roles[1] and set(roles) <= set(ROLES)):
            raise UserError(
                f"{source}: its weights do not fit {name} by their order: tensor {number} is {its} {shapes[0]}, and the"
                f" network has {mine} {shapes[1]}; choose the model that they were trained with"
            )
    if len(state) != len(expected):
        raise UserError(
            f"{source}: has {len(state)} tensors, and {name} has {len(expected)}; choose the model that they were"
            " trained with"
        )
    return dict(zip(expected, state, strict=True))


def pair_lines(pairs: Mapping[str, str], file: str, network: str) -> list[str]:
    """A line for each layer of `pair_by_order`'s result, "bn1 <- _bn0 (weight, bias)"; empty if there are no pairs."""
    layers: dict[tuple[str, str], list[str]] = {}
    for mine, its in pairs.items():
        (to, _, role), (of, _, its_role) = mine.rpartition("."), its.rpartition(".")
        layers.setdefault((to or mine, of or its), []).append(role if role == its_role else f"{role} <- {its_role}")
    lines = [f"  {to} <- {of} ({', '.join(roles)})" for (to, of), roles in layers.items()]
    return [f"{file}: {len(pairs)} tensors matched by their order; {network} <- the file:", *lines] if pairs else []


def _of_swins_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm counts the layer that merges patches to the stage after it, and calls the classifier head.fc."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", key)
        renamed[re.sub(r"^head\.(?!fc\.)", "head.fc.", key)] = value
    return {key: value for key, value in renamed.items() if not key.endswith(SWIN_BUFFERS)}


def _of_convnexts_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for pattern, ours in CONVNEXT_NAMES:
            key = re.sub(pattern, ours, key)
        renamed[key] = value
    return renamed


def _of_ffcv_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    blurred = {key.removesuffix(FFCV_KERNEL) for key in state if key.endswith(FFCV_KERNEL)}
    renamed = {}
    for key, value in state.items():
        layer, _, role = key.rpartition(".")
        if layer.removesuffix(".conv") in blurred:
            key = f"{layer.removesuffix('.conv')}.{role}".replace(FFCV_KERNEL, OUR_KERNEL)
        renamed[key] = value
    return renamed


def torchvision_names(name: str) -> list[str]:
    """Names of the state dict of torchvision's network, in its order."""
    # on the meta device, so that VGG's 500 MB are neither allocated nor initialized
    with torch.device("meta"):
        return list(torchvision.models.get_model(name, weights=None).state_dict())

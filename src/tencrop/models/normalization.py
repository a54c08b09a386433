"""Which modules of a network are normalization layers; the count of parameters and the optimizers ask."""

from torch import nn


def is_normalization(module: nn.Module) -> bool:
    """Whether a module is a normalization layer, by the name of its class.

    torch, torchvision and timm have dozens of such classes without a common base, and name all of them so.
    """
    return "norm" in type(module).__name__.lower()

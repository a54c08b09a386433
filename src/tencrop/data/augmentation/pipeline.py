"""The list of all augmentations, in the order of application; draws their parameters and builds them for a run."""

from __future__ import annotations

from typing import Any

from torch import nn

from tencrop.config import Augmentation, Config
from tencrop.data.augmentation.color import ColorJitter, Normalize
from tencrop.data.augmentation.erasing import RandomErasing
from tencrop.data.augmentation.mixing import MixupCutmix
from tencrop.data.augmentation.randaugment import RandomOperations
from tencrop.data.augmentation.transform import Params, Samples, Transform

# Before Normalize, a transform gets gray levels [B, H, W, 3] on [0, 255], as uint8 until one returns floats; after it,
# normalized inputs [B, 3, H, W].
PIPELINE: tuple[type[Transform], ...] = (RandomOperations, ColorJitter, Normalize, RandomErasing, MixupCutmix)

# The digest hashes parameters in this order, which is older than PIPELINE; a transform that is not listed follows.
_HASHED_FIRST: tuple[type[Transform], ...] = (Normalize, ColorJitter, RandomOperations, RandomErasing, MixupCutmix)
_HASHED: tuple[type[Transform], ...] = (
    *_HASHED_FIRST,
    *(transform for transform in PIPELINE if transform not in _HASHED_FIRST),
)

DEVICE_PARAMS = frozenset().union(*(transform.device_params for transform in PIPELINE))


def build_transforms(config: Config, statistics: dict[str, Any]) -> nn.ModuleList:
    """The transforms that the recipe uses, in the order of application; arguments as in `Transform`."""
    return nn.ModuleList(
        transform(config, statistics) for transform in PIPELINE if transform.is_on(config.augmentation)
    )


def draw_params(samples: Samples, augmentation: Augmentation) -> Params:
    """The parameters of all transforms for a training batch, in the order in which the digest hashes them."""
    # Each transform has random streams of its own, so turning one on or off leaves the draws of the others unchanged.
    params: Params = {}
    for transform in _HASHED:
        is_on = transform.is_on(augmentation)
        drawn = transform.draw(samples, augmentation) if is_on else transform.neutral(len(samples.index))
        assert not params.keys() & drawn.keys(), f"{transform.__name__}: another transform has a parameter of this name"
        params |= drawn
    return params


def neutral_params(num_samples: int) -> Params:
    """The parameters of a batch that is not augmented."""
    return {name: values for transform in _HASHED for name, values in transform.neutral(num_samples).items()}

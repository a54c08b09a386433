"""Test protocols: which views (crops and reflections) of an image the network sees, and how their scores are merged.

All functions are pure. Crop positions are computed on the host from the sizes of the images. Views are cut on the
device: an image is copied there once, as uint8, for each side that the protocol rescales to; ten crops copied
separately would be five to ten times as many bytes. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.config import Protocol
from tencrop.data.augmentation.crops import square_crops
from tencrop.data.sampling.geometry import offset
from tencrop.data.sampling.rng import Index

Sizes = npt.NDArray[np.integer]

# Position (vertical, horizontal) of a crop within the image: (0, 0) is the top left, (1, 1) the bottom right.
CENTER = ((0.5, 0.5),)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
GRID = tuple((row / 4, column / 4) for row in range(5) for column in range(5))
# Unreflected crops of each protocol, in the order of the views. "dense" has none: it sees whole images.
POSITIONS = {
    "center": CENTER,
    "flip_pair": CENTER,
    "five_crop": CORNERS + CENTER,
    "ten_crop": CORNERS + CENTER,
    "grid_crop": GRID,
    "crops_144": CORNERS + CENTER,  # in each of SQUARES
}
SIDES_144 = [256, 288, 320, 352]  # as in conf/protocol/crops_144.yaml
SQUARES = (0.0, 0.5, 1.0)  # positions of the squares of crops_144 along the longer side
RESIZED_BYTES = 1 << 28  # float32 pixels that crops_144 resizes at once: one square of side 4,729
# Protocols whose views are followed by their horizontal reflections.
REFLECTED = {"flip_pair", "ten_crop", "grid_crop", "crops_144", "dense"}


def default_side(name: str, short_side: int | None) -> int | list[int] | None:
    """The shorter side that a protocol rescales images to by default; a list if it uses several."""
    return SIDES_144 if name == "crops_144" else short_side


def num_views(protocol: Protocol) -> int:
    """Number of views of one image, over all sides that it is rescaled to."""
    one_side = 1 if protocol.name == "dense" else len(POSITIONS[protocol.name])
    if protocol.name == "crops_144":
        one_side = len(SQUARES) * (one_side + 1)  # five crops and the whole square, resized: 4 * 3 * 6 * 2 = 144
    return len(protocol.sides) * one_side * (2 if protocol.name in REFLECTED else 1)


def view_groups(images: Tensor, sizes: Sizes, protocol: Protocol) -> Iterator[tuple[Index, Iterator[Tensor]]]:
    """Yield (slots [b], views, each uint8 [b, H, W, 3]): the images of a batch in groups whose views have one size.

    Crops form one group. Whole images (dense) form a group for each size: the image, then its reflection. Each view is
    made when the iterator reaches it, so that only one is in memory. Arguments as for `views`.
    """
    if protocol.name != "dense":
        yield np.arange(len(images)), _each_view(images, sizes, protocol)
        return
    # Padding images of different sizes to one would change the scores near their borders.
    for height, width in np.unique(sizes, axis=0).tolist():
        slots = np.flatnonzero((sizes == [height, width]).all(axis=1))
        whole = images[_to_device(slots, images.device), :height, :width]
        yield slots, _reflected([whole])


def views(images: Tensor, sizes: Sizes, protocol: Protocol) -> Tensor:
    """The crops of a batch, uint8 [V, B, size, size, 3], on the device of `images`.

    images: uint8 [B, H, W, 3], each in the top left of its slot; sizes: [B, 2], its height and width there, at least
    protocol.size. The order is top left, top right, bottom left, bottom right, center, and then the reflections in the
    same order. region=whole takes the corners of the image (fb.resnet.torch), region=square those of its central square
    (Krizhevsky et al. 2012, section 4.1). The center is rounded as in torchvision. grid_crop takes 5 x 5 equally spaced
    crops, row by row (Simonyan and Zisserman 2015, table 5). crops_144 takes these five crops of
    the left, central and right square (for tall images: top, central and bottom), then the three squares resized to
    size x size, then the reflections of all (Szegedy et al. 2015, section 7).
    """
    return torch.stack(list(_each_view(images, sizes, protocol)))


def _each_view(images: Tensor, sizes: Sizes, protocol: Protocol) -> Iterator[Tensor]:
    """Yield the views one by one, each [B, size, size, 3]; crops_144 keeps only its resized squares in memory."""
    starts = _to_device(corners(sizes, protocol), images.device)
    squares = _resized_squares(images, sizes, protocol) if protocol.name == "crops_144" else []
    for is_reflected in (False, True) if protocol.name in REFLECTED else (False,):
        # Cut again for the reflections: a gather is cheaper than holding all crops of a batch.
        crops = (square_crops(images, start, size=protocol.size) for start in starts)
        # Dimension 2 of [B, H, W, C] is the width.
        yield from (view.flip(2) if is_reflected else view for view in chain(crops, squares))


def _reflected(wholes: Sequence[Tensor]) -> Iterator[Tensor]:
    yield from wholes
    yield from (whole.flip(2) for whole in wholes)


def corners(sizes: Sizes, protocol: Protocol) -> Index:
    """Top and left pixel of each crop, int64 [V', B, 2] of sizes [B, 2]; V' counts the views without reflections."""
    assert sizes.min() >= protocol.size, f"an image of {sizes.min(axis=0).tolist()} is smaller than {protocol.size}"
    region, start = sizes, np.zeros((1, *sizes.shape), np.int64)
    if protocol.region == "square" or protocol.name == "crops_144":
        start = _square_corners(sizes, SQUARES if protocol.name == "crops_144" else (0.5,))
        region = sizes.min(axis=1, keepdims=True)
    position = np.array(POSITIONS[protocol.name])[:, None]
    # [S, 1, B, 2] + [P, B, 2]: every position in every square.
    return (start[:, None] + offset(region, protocol.size, position)).reshape(-1, *sizes.shape)


def merge(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean softmax and mean logits over the views of logits [V, B, K]; both float32 [B, K].

    Krizhevsky et al. 2012 and He et al. 2016 average the softmax. fb.resnet.torch sums logits, which ranks the classes
    in the same order as their mean.
    """
    logits = logits.float()  # a softmax in bfloat16 would tie classes
    # The two are not interchangeable: they can rank classes differently, and papers use either.
    return logits.softmax(2).mean(0), logits.mean(0)


def _square_corners(sizes: Sizes, positions: tuple[float, ...]) -> Index:
    """Top and left pixel of the largest squares at these positions along the longer side, [S, B, 2]."""
    return offset(sizes, sizes.min(axis=1, keepdims=True), np.array(positions)[:, None, None])


def _resized_squares(images: Tensor, sizes: Sizes, protocol: Protocol) -> list[Tensor]:
    """The three squares of crops_144 resized to the crop's size, each [B, size, size, 3].

    Resizes as many images at once as RESIZED_BYTES allows; the number does not affect the pixels.
    """
    side = int(sizes.min())  # crops_144 rescales every image, so that all have this shorter side
    num_at_once = max(1, RESIZED_BYTES // (4 * 3 * side**2))
    parts = [slice(first, first + num_at_once) for first in range(0, len(images), num_at_once)]
    starts = _to_device(_square_corners(sizes, SQUARES), images.device)
    return [
        torch.cat(
            [_resized(square_crops(images[p], start[p], size=side), protocol.size, protocol.filter) for p in parts]
        )
        for start in starts
    ]


def _to_device(positions: Index, device: torch.device) -> Tensor:
    return torch.from_numpy(positions).to(device, non_blocking=True)


def _resized(squares: Tensor, size: int, filter: str) -> Tensor:
    """Resize uint8 [B, H, H, 3] to size x size as Pillow does: horizontally, then vertically, rounding after each.

    One call for both directions would round once and differ from the pixels that the loader resizes.
    """
    pixels = squares.permute(0, 3, 1, 2).float()
    for extent in ((squares.shape[1], size), (size, size)):
        pixels = torch.nn.functional.interpolate(pixels, extent, mode=filter, antialias=True).round_().clamp_(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)

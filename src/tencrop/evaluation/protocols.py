"""Test protocols: which views of an image the network sees, and how their scores become one.

Called by inference.py. All are pure functions: places are computed on the host, from the sizes of the images, and views
are cut on the device, to which an image crosses once for each side that the protocol rescales to, as uint8. Nothing
waits for the device.
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

# position of a view's corner between the top left (0, 0) and the bottom right (1, 1) of the room it can move in
CENTER = ((0.5, 0.5),)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
POSITIONS = {
    "center": CENTER,
    "flip_pair": CENTER,
    "five_crop": CORNERS + CENTER,
    "ten_crop": CORNERS + CENTER,
    "crops_144": CORNERS + CENTER,  # of each of SQUARES
}
SIDES_144 = [256, 288, 320, 352]  # as in conf/protocol/crops_144.yaml
SQUARES = (0.0, 0.5, 1.0)  # where the squares of crops_144 lie along the longer side
RESIZED_BYTES = 1 << 28  # of float32 pixels that crops_144 resizes at once: one square of 4,729 pixels
REFLECTED = {"flip_pair", "ten_crop", "crops_144", "dense"}


def default_side(name: str, short_side: int | None) -> int | list[int] | None:
    """What the protocol of that name rescales the shorter side to unless told otherwise."""
    return SIDES_144 if name == "crops_144" else short_side


def num_views(protocol: Protocol) -> int:
    """Views of one image, over all sides that it is rescaled to."""
    one_side = 1 if protocol.name == "dense" else len(POSITIONS[protocol.name])
    if protocol.name == "crops_144":
        one_side = len(SQUARES) * (one_side + 1)
    return len(protocol.sides) * one_side * (2 if protocol.name in REFLECTED else 1)


def view_groups(images: Tensor, sizes: Sizes, protocol: Protocol) -> Iterator[tuple[Index, Iterator[Tensor]]]:
    """(slots [b], views, each uint8 [b, H, W, 3]): the images of a batch in groups whose views have one size.

    Crops are one group; whole images (dense) are a group for every size among them: itself, then its reflection.
    A view is made when it is asked for, so that one is held at a time. Arguments as of `views`.
    """
    if protocol.name != "dense":
        yield np.arange(len(images)), _each_view(images, sizes, protocol)
        return
    for height, width in np.unique(sizes, axis=0).tolist():
        slots = np.flatnonzero((sizes == [height, width]).all(axis=1))
        whole = images[_moved(slots, images.device), :height, :width]
        yield slots, _reflected([whole])


def views(images: Tensor, sizes: Sizes, protocol: Protocol) -> Tensor:
    """The crops of a batch, uint8 [V, B, size, size, 3], on the device of `images`.

    images: uint8 [B, H, W, 3], each in the top left of its slot; sizes: [B, 2], its height and width there,
    at least protocol.size. The order: top left, top right, bottom left, bottom right, center, and then the
    reflection of each in the same order. region=whole takes corners of the image (fb.resnet.torch), region=square
    those of its central square (Krizhevsky et al. 2012, section 4.1). The center is rounded as in torchvision.
    crops_144 takes these five of the left, central and right square (top, central and bottom), then the three squares
    resized to size x size, then the reflections of all (Szegedy et al. 2015, section 7).
    """
    return torch.stack(list(_each_view(images, sizes, protocol)))


def _each_view(images: Tensor, sizes: Sizes, protocol: Protocol) -> Iterator[Tensor]:
    """The views one after the other, [B, size, size, 3]; of crops_144 the resized squares alone are kept."""
    starts = _moved(corners(sizes, protocol), images.device)
    squares = _resized_squares(images, sizes, protocol) if protocol.name == "crops_144" else []
    for is_reflected in (False, True) if protocol.name in REFLECTED else (False,):
        crops = (square_crops(images, start, size=protocol.size) for start in starts)
        yield from (view.flip(2) if is_reflected else view for view in chain(crops, squares))


def _reflected(wholes: Sequence[Tensor]) -> Iterator[Tensor]:
    yield from wholes
    yield from (whole.flip(2) for whole in wholes)


def corners(sizes: Sizes, protocol: Protocol) -> Index:
    """Top and left pixel of each unreflected crop, [V', B, 2] of sizes [B, 2]."""
    assert sizes.min() >= protocol.size, f"an image of {sizes.min(axis=0).tolist()} is smaller than {protocol.size}"
    region, start = sizes, np.zeros((1, *sizes.shape), np.int64)
    if protocol.region == "square" or protocol.name == "crops_144":
        start = _square_corners(sizes, SQUARES if protocol.name == "crops_144" else (0.5,))
        region = sizes.min(axis=1, keepdims=True)
    place = np.array(POSITIONS[protocol.name])[:, None]
    return (start[:, None] + offset(region, protocol.size, place)).reshape(-1, *sizes.shape)


def merge(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the views of logits [V, B, K]: of their softmax (Krizhevsky 2012, He 2015) and of themselves.

    fb.resnet.torch sums logits, which ranks classes as their mean does. Both float32 [B, K].
    """
    logits = logits.float()
    return logits.softmax(2).mean(0), logits.mean(0)


def _square_corners(sizes: Sizes, places: tuple[float, ...]) -> Index:
    """Top and left pixel of the largest squares at those places along the longer side, [S, B, 2]."""
    return offset(sizes, sizes.min(axis=1, keepdims=True), np.array(places)[:, None, None])


def _resized_squares(images: Tensor, sizes: Sizes, protocol: Protocol) -> list[Tensor]:
    """The squares of crops_144 at the crop's size, each [B, size, size, 3]. As many images at once as RESIZED_BYTES
    allows: how many is of no consequence to the pixels."""
    side = int(sizes.min())
    num_at_once = max(1, RESIZED_BYTES // (4 * 3 * side**2))
    parts = [slice(first, first + num_at_once) for first in range(0, len(images), num_at_once)]
    places = _moved(_square_corners(sizes, SQUARES), images.device)
    return [
        torch.cat(
            [_resized(square_crops(images[p], place[p], size=side), protocol.size, protocol.filter) for p in parts]
        )
        for place in places
    ]


def _moved(places: Index, device: torch.device) -> Tensor:
    return torch.from_numpy(places).to(device, non_blocking=True)


def _resized(squares: Tensor, size: int, filter: str) -> Tensor:
    """uint8 [B, H, H, 3] at size x size as Pillow does it: first across, then down, rounded after either."""
    pixels = squares.permute(0, 3, 1, 2).float()
    for extent in ((squares.shape[1], size), (size, size)):
        pixels = torch.nn.functional.interpolate(pixels, extent, mode=filter, antialias=True).round_().clamp_(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)

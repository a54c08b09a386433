"""Test protocols: which views of an image the network sees, and how their scores become one.

Called by scoring.py. All are pure functions: places are computed on the host, from the sizes of the images, and views
are cut on the device, to which an image crosses once for each side that the protocol rescales to, as uint8. Nothing
waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tencrop.config import Protocol
from tencrop.data.draws import Index

Sizes = npt.NDArray[np.integer]

# position of a view's corner between the top left (0, 0) and the bottom right (1, 1) of the room it can move in
CENTRE = ((0.5, 0.5),)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
POSITIONS = {
    "center": CENTRE,
    "flip_pair": CENTRE,
    "five_crop": CORNERS + CENTRE,
    "ten_crop": CORNERS + CENTRE,
    "crops_144": CORNERS + CENTRE,  # of each of SQUARES
}
SIDES_144 = [256, 288, 320, 352]  # as in conf/protocol/crops_144.yaml
SQUARES = (0.0, 0.5, 1.0)  # where the squares of crops_144 lie along the longer side
REFLECTED = {"flip_pair", "ten_crop", "crops_144", "dense"}


def usual_side(name: str, short_side: int | None) -> int | list[int] | None:
    """What the protocol of that name rescales the shorter side to unless told otherwise."""
    return SIDES_144 if name == "crops_144" else short_side


def num_views(protocol: Protocol) -> int:
    """Views of one image, over all sides that it is rescaled to."""
    one_side = 1 if protocol.name == "dense" else len(POSITIONS[protocol.name])
    if protocol.name == "crops_144":
        one_side = len(SQUARES) * (one_side + 1)
    return len(protocol.sides) * one_side * (2 if protocol.name in REFLECTED else 1)


def view_groups(images: Tensor, sizes: Sizes, protocol: Protocol) -> Iterator[tuple[Index, Tensor]]:
    """(slots [b], views uint8 [V, b, H, W, 3]): the images of a batch in groups whose views have one size.

    Crops are one group; whole images (dense) are a group for every size among them: itself, then its reflection.
    Arguments as of `views`.
    """
    if protocol.name != "dense":
        yield np.arange(len(images)), views(images, sizes, protocol)
        return
    for height, width in np.unique(sizes, axis=0).tolist():
        slots = np.flatnonzero((sizes == [height, width]).all(axis=1))
        whole = images[_moved(slots, images.device), :height, :width]
        yield slots, torch.stack([whole, whole.flip(2)])


def views(images: Tensor, sizes: Sizes, protocol: Protocol) -> Tensor:
    """The crops of a batch, uint8 [V, B, size, size, 3], on the device of `images`.

    images: uint8 [B, H, W, 3], each in the top left of its slot; sizes: [B, 2], its height and width there,
    at least protocol.size. The order: top left, top right, bottom left, bottom right, centre, and then the
    reflection of each in the same order. region=whole takes corners of the image (fb.resnet.torch), region=square
    those of its central square (Krizhevsky et al. 2012, section 4.1). The centre is rounded as in torchvision.
    crops_144 takes these five of the left, central and right square (top, central and bottom), then the three squares
    resized to size x size, then the reflections of all (Szegedy et al. 2015, section 7).
    """
    crops = _cut(images, corners(sizes, protocol), protocol.size)
    if protocol.name == "crops_144":
        side = int(sizes.min())
        squares = _cut(images, _square_corners(sizes, SQUARES), side)
        crops = torch.cat([crops, _resized(squares, protocol.size, protocol.filter)])
    return torch.cat([crops, crops.flip(3)]) if protocol.name in REFLECTED else crops


def corners(sizes: Sizes, protocol: Protocol) -> Index:
    """Top and left pixel of each unreflected crop, [V', B, 2] of sizes [B, 2]."""
    assert sizes.min() >= protocol.size, f"an image of {sizes.min(axis=0).tolist()} is smaller than {protocol.size}"
    region, start = sizes, np.zeros((1, *sizes.shape), np.int64)
    if protocol.region == "square" or protocol.name == "crops_144":
        start = _square_corners(sizes, SQUARES if protocol.name == "crops_144" else (0.5,))
        region = sizes.min(axis=1, keepdims=True)
    place = np.array(POSITIONS[protocol.name])[:, None]
    room = np.rint((region - protocol.size) * place).astype(np.int64)  # half to even, as Python's in torchvision
    return (start[:, None] + room).reshape(-1, *sizes.shape)


def merge(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the views of logits [V, B, K]: of their softmax (Krizhevsky 2012, He 2015) and of themselves.

    fb.resnet.torch sums logits, which ranks classes as their mean does. Both float32 [B, K].
    """
    logits = logits.float()
    return logits.softmax(2).mean(0), logits.mean(0)


def _square_corners(sizes: Sizes, places: tuple[float, ...]) -> Index:
    """Top and left pixel of the largest squares at those places along the longer side, [S, B, 2]."""
    room = sizes - sizes.min(axis=1, keepdims=True)
    return np.rint(room * np.array(places)[:, None, None]).astype(np.int64)


def _cut(images: Tensor, starts: Index, size: int) -> Tensor:
    """Squares [V, B, size, size, 3] of the images whose top left pixels are `starts` [V, B, 2]."""
    there, span = _moved(starts, images.device), torch.arange(size, device=images.device)
    rows, columns = (there[..., axis, None] + span for axis in (0, 1))
    slots = torch.arange(len(images), device=images.device)
    return images[slots[:, None, None], rows[..., :, None], columns[..., None, :]]


def _moved(places: Index, device: torch.device) -> Tensor:
    return torch.from_numpy(places).to(device, non_blocking=True)


def _resized(squares: Tensor, size: int, filter: str) -> Tensor:
    """uint8 [V, B, H, H, 3] at size x size as Pillow does it: first across, then down, rounded after either."""
    pixels = squares.flatten(0, 1).permute(0, 3, 1, 2).float()
    for extent in ((squares.shape[2], size), (size, size)):
        pixels = torch.nn.functional.interpolate(pixels, extent, mode=filter, antialias=True).round_().clamp_(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, squares.shape[:2])

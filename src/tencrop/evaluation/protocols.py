"""Test protocols: which views of an image the network sees, and how their scores become one.

Called by evaluate.py. Both halves are pure functions of tensors on one device; an image crosses to the
device once, as uint8, and its views are cut there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tencrop.config import Protocol

# position of a view's corner between the top left (0, 0) and the bottom right (1, 1) of the room it can move in
CENTRE = ((0.5, 0.5),)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
POSITIONS = {"center": CENTRE, "flip_pair": CENTRE, "five_crop": CORNERS + CENTRE, "ten_crop": CORNERS + CENTRE}
REFLECTED = {"flip_pair", "ten_crop"}


def num_views(protocol: Protocol) -> int:
    """Views of one image."""
    return len(POSITIONS[protocol.name]) * (2 if protocol.name in REFLECTED else 1)


def views(images: Tensor, sizes: Tensor, protocol: Protocol) -> Tensor:
    """The views of a batch, uint8 [V, B, size, size, 3], on the device of `images`.

    images: uint8 [B, H, W, 3], each in the top left of its slot; sizes: int [B, 2], its height and width there,
    at least protocol.size. The order: top left, top right, bottom left, bottom right, centre, and then the
    reflection of each in the same order. region=whole takes corners of the image (fb.resnet.torch), region=square
    those of its central square (Krizhevsky et al. 2012, section 4.1). The centre is rounded as in torchvision.
    """
    tops, lefts = corners(sizes.cpu(), protocol)
    span = torch.arange(protocol.size)
    rows, columns = tops[..., None] + span, lefts[..., None] + span
    if protocol.name in REFLECTED:
        rows, columns = torch.cat([rows, rows]), torch.cat([columns, columns.flip(-1)])
    rows, columns = (part.to(images.device, non_blocking=True) for part in (rows, columns))
    slots = torch.arange(len(images), device=images.device)
    return images[slots[:, None, None], rows[..., :, None], columns[..., None, :]]


def corners(sizes: Tensor, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Top and left pixel of each unreflected view: two int64 [V', B] of sizes int [B, 2]."""
    sizes = sizes.to(torch.float64)
    assert int(sizes.min()) >= protocol.size, f"an image of {sizes.amin(0).tolist()} is smaller than {protocol.size}"
    region = sizes.amin(1, keepdim=True).expand_as(sizes) if protocol.region == "square" else sizes
    start = torch.round((sizes - region) / 2)  # half to even, as Python's round in torchvision
    place = torch.tensor(POSITIONS[protocol.name], dtype=torch.float64)[:, None]
    tops, lefts = (start + torch.round((region - protocol.size) * place)).to(torch.int64).unbind(-1)
    return tops, lefts


def merge(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the views of logits [V, B, K]: of their softmax (Krizhevsky 2012, He 2015) and of themselves.

    fb.resnet.torch sums logits, which ranks classes as their mean does. Both float32 [B, K].
    """
    logits = logits.float()
    return logits.softmax(2).mean(0), logits.mean(0)

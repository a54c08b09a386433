"""The plan of a micro-batch: which box of each image, mirrored or not, at which size, with which colour draw.

Computed once, vectorised over the batch, in integers and float64 [3]; both loaders are handed the same plan.
Boxes are in the *stored* image's pixels [5].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tencrop.config import Augmentation, Protocol
from tencrop.data.draws import Float64, Index, Purpose, draws, integers_below, normals, uniforms
from tencrop.data.geometry import center_box, central_square, rescaled_size

Sizes = npt.NDArray[np.int32]
NUM_ATTEMPTS = 10  # of GoogLeNet's crop, as in torchvision


class Plan(NamedTuple):
    """What the loaders apply to the B samples of a micro-batch."""

    index: Index  # type: ignore[assignment]  # int64 [B]; hides tuple.index
    boxes: npt.NDArray[np.int32]  # [B, 4] top, left, height, width, in stored pixels
    sizes: Sizes  # [B, 2] height and width that the box is resized to
    flips: npt.NDArray[np.bool_]  # [B] mirrored after the resize
    colour: Float64  # [B, 3] alphas of the RGB principal components (zeros when off)


def training_plan(
    index: Index, stored_sizes: Sizes, *, augmentation: Augmentation, seed: int, epoch: int, view: int = 0
) -> Plan:
    """The plan of training samples `index`; `stored_sizes` int32 [N_all, 2] are those of the whole split.

    A sample's row is a function of (seed, epoch, index, view) and its own size alone.
    """
    index = np.asarray(index, np.int64)
    height, width = stored_sizes[index].astype(np.int64).T
    size = augmentation.size
    key: dict[str, Any] = {"seed": seed, "index": index, "epoch": epoch, "view": view}
    if augmentation.crop == "random_resized":
        assert augmentation.area is not None and augmentation.aspect is not None
        draw = draws(**key, purpose=Purpose.CROP, count=4 * NUM_ATTEMPTS)
        boxes = random_resized_boxes(height, width, draw, area=augmentation.area, aspect=augmentation.aspect)
    elif augmentation.crop == "random":
        assert augmentation.side is not None and augmentation.region is not None
        draw = draws(**key, purpose=Purpose.CROP, count=3)
        boxes = random_boxes(height, width, draw, side=augmentation.side, size=size, region=augmentation.region)
    else:
        assert augmentation.crop == "none", augmentation.crop
        boxes = np.stack([np.zeros_like(height), np.zeros_like(width), height, width], axis=1)
    flips = uniforms(**key, purpose=Purpose.FLIP, count=1)[:, 0] < augmentation.flip
    colour = np.zeros((len(index), 3))
    if augmentation.pca.std > 0:
        colour = normals(**key, purpose=Purpose.PCA, count=3) * augmentation.pca.std
    sizes = np.full((len(index), 2), size, np.int32)
    return Plan(index, boxes.astype(np.int32), sizes, flips, colour)


def evaluation_plan(index: Index, stored_sizes: Sizes, *, protocol: Protocol) -> Plan:
    """The plan of evaluation samples `index`: the whole image, or its central square where the protocol's region is
    the square, resized so that its shorter side is `protocol.side` (kept where null). Sizes differ per image.
    """
    index = np.asarray(index, np.int64)
    height, width = stored_sizes[index].astype(np.int64).T
    top, left = np.zeros_like(height), np.zeros_like(width)
    if protocol.region == "square":
        top, left, height, width = central_square(height, width)
    out_height, out_width = (height, width) if protocol.side is None else rescaled_size(height, width, protocol.side)
    boxes = np.stack([top, left, height, width], axis=1).astype(np.int32)
    sizes = np.stack([out_height, out_width], axis=1).astype(np.int32)
    return Plan(index, boxes, sizes, np.zeros(len(index), bool), np.zeros((len(index), 3)))


def random_resized_boxes(
    height: Index, width: Index, draw: npt.NDArray[np.uint64], *, area: list[float], aspect: list[float]
) -> Index:
    """Boxes int64 [B, 4] of GoogLeNet's crop (Szegedy et al. 2015, section 6), by torchvision's algorithm.

    The box covers a uniform share `area` of the image at an aspect ratio (width / height) uniform in its logarithm
    over `aspect`, at a uniform place. The first of ten attempts that fits counts; attempt a has draws 4a (area),
    4a + 1 (aspect), 4a + 2 (top) and 4a + 3 (left) of `draw`, uint64 [B, 40], to itself. Where none fits: the largest
    central box whose aspect ratio lies in the range.
    """
    height, width = height[:, None], width[:, None]
    share, ratio = (np.ascontiguousarray((draw[:, part::4] >> np.uint64(11)) * 2.0**-53) for part in (0, 1))
    target_area = height * width * (area[0] + (area[1] - area[0]) * share)
    log_aspect = np.log(aspect)
    ratio = np.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * ratio)
    box_height = np.rint(np.sqrt(target_area / ratio)).astype(np.int64)
    box_width = np.rint(np.sqrt(target_area * ratio)).astype(np.int64)
    fits = (box_height > 0) & (box_height <= height) & (box_width > 0) & (box_width <= width)
    first = fits.argmax(axis=1)[:, None]
    top = integers_below(draw[:, 2::4], np.where(fits, height - box_height + 1, 1))
    left = integers_below(draw[:, 3::4], np.where(fits, width - box_width + 1, 1))
    attempts = np.stack([top, left, box_height, box_width], axis=2)
    chosen = np.take_along_axis(attempts, first[:, :, None], axis=1)[:, 0]
    return np.where(fits.any(axis=1)[:, None], chosen, _fallback_boxes(height[:, 0], width[:, 0], aspect))


def random_boxes(
    height: Index, width: Index, draw: npt.NDArray[np.uint64], *, side: list[int], size: int, region: str
) -> Index:
    """Boxes int64 [B, 4] of a size x size window in the image rescaled to a random shorter side.

    The side is uniform over the integers `side` [low, high] (draw 0; VGG's scale jitter, one value for AlexNet); the
    window's top and left (draws 1, 2) are uniform over the whole rescaled image or over its central square. The
    window's edges, mapped to stored pixels, are rounded to whole ones: a store that has the side already is cropped
    size x size, without a resize.
    """
    short_side = side[0] + integers_below(draw[:, 0], side[1] - side[0] + 1)
    rescaled = rescaled_size(height, width, short_side)
    origin = [np.zeros_like(height), np.zeros_like(width)]
    extent = list(rescaled)
    if region == "square":
        origin[0], origin[1], extent[0], extent[1] = center_box(*rescaled, short_side, short_side)
    starts, lengths = [], []
    for axis, stored in enumerate((height, width)):
        start = origin[axis] + integers_below(draw[:, 1 + axis], extent[axis] - size + 1)
        first = _rounded_ratio(start * stored, rescaled[axis])
        last = _rounded_ratio((start + size) * stored, rescaled[axis])
        starts.append(np.minimum(first, stored - 1))
        lengths.append(np.maximum(last - starts[-1], 1))
    return np.stack(starts + lengths, axis=1)


def _fallback_boxes(height: Index, width: Index, aspect: list[float]) -> Index:
    low, high = aspect
    is_tall, is_wide = width / height < low, width / height > high
    box_height = np.where(is_tall, np.rint(width / low).astype(np.int64), height)
    box_width = np.where(is_wide, np.rint(height * high).astype(np.int64), width)
    box_height, box_width = np.maximum(box_height, 1), np.maximum(box_width, 1)
    return np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=1)


def _rounded_ratio(numerator: Index, denominator: Index) -> Index:
    return (2 * numerator + denominator) // (2 * denominator)

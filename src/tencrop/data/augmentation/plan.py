"""The augmentation plan of a micro-batch: crop boxes, flips, sizes and all random draws, before any pixel is read.

The plan is computed once on the host, vectorized over the batch (1 ms for 256 samples), and every loader executes the
same plan. It uses integers and float64 only, so it is the same on every machine. Boxes are in pixels of the stored
image, because a store may hold a reduced image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tencrop.config import Augmentation, Protocol
from tencrop.data.augmentation.distorted_boxes import random_sized_tf_boxes
from tencrop.data.augmentation.mean_image import mean_crop_params
from tencrop.data.augmentation.pipeline import draw_params, neutral_params
from tencrop.data.augmentation.progressive import at_epoch
from tencrop.data.augmentation.transform import Params, Samples
from tencrop.data.sampling.geometry import center_box, central_fraction, central_square, rescaled_size
from tencrop.data.sampling.rng import (
    Float64,
    Index,
    Stream,
    View,
    as_uniforms,
    integers_below,
    random_uint64,
    uniforms,
)

Sizes = npt.NDArray[np.int32]
NUM_ATTEMPTS = 10  # attempts at GoogLeNet's crop before the fallback, as in torchvision


class Plan(NamedTuple):
    """What the loaders (boxes, sizes, flips) and the device (params) apply to the B samples of a micro-batch."""

    index: Index  # type: ignore[assignment]  # int64 [B]; hides tuple.index
    boxes: npt.NDArray[np.int32]  # [B, 4] top, left, height, width, in stored pixels
    sizes: Sizes  # [B, 2] height and width that the box is resized to
    flips: npt.NDArray[np.bool_]  # [B] mirrored after the resize
    params: Params  # random parameters of the transforms, by name


def training_plan(
    index: Index,
    stored_sizes: Sizes,
    *,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    view: View = 0,
    positions: Index | None = None,
    mean_side: int | None = None,
) -> Plan:
    """The plan of training samples `index`; `stored_sizes` uint16 [N_all, 2] are those of the whole split.

    `view` is the copy number under repeated augmentation: one for all samples, or one each.
    A sample's row depends only on (seed, epoch, index, view) and its own size; its mix depends on (seed, epoch) and on
    its position in the epoch, `positions` int64 [B], which only mixing needs. mean_side: side of the mean image that is
    subtracted; then params["mean_crop_params"] says where each crop lies in it.
    """
    augmentation = at_epoch(augmentation, epoch)
    index = np.asarray(index, np.int64)
    height, width = stored_sizes[index].astype(np.int64).T  # in int32 a product of two lengths could overflow
    samples = Samples(index, epoch, seed, view, positions)
    boxes = _crop_boxes(height, width, samples, augmentation).astype(np.int32)
    sizes = np.full((len(index), 2), augmentation.size, np.int32)
    # A stream of its own, drawn even if flip is 0: another probability changes no crop and no color.
    flips = uniforms(**samples.key, stream=Stream.FLIP, count=1)[:, 0] < augmentation.flip
    params = draw_params(samples, augmentation)
    if mean_side is not None:
        params["mean_crop_params"] = mean_crop_params(samples.key, side=mean_side, size=augmentation.size, flips=flips)
    return Plan(index, boxes, sizes, flips, params)


def evaluation_plan(index: Index, stored_sizes: Sizes, *, protocol: Protocol) -> Plan:
    """The plan of evaluation samples `index`: the whole image or its central part, resized as `protocol` says.

    region=square takes the central square, resize=central_fraction the central 0.875 of both sides, to size x size.
    resize=warp stretches to side x side; otherwise the shorter side is resized to `side` (None: not resized), and sizes
    differ per image. The device crops the views.
    """
    index = np.asarray(index, np.int64)
    height, width = stored_sizes[index].astype(np.int64).T
    top, left = np.zeros_like(height), np.zeros_like(width)
    if protocol.region == "square":
        top, left, height, width = central_square(height, width)
    if protocol.resize == "central_fraction":
        top, left, height, width = central_fraction(height, width)
    boxes = np.stack([top, left, height, width], axis=1).astype(np.int32)
    sizes = np.stack(_resized(height, width, protocol), axis=1).astype(np.int32)
    # Neutral parameters, so that loaders, Batch and digest need no second form for evaluation.
    return Plan(index, boxes, sizes, np.zeros(len(index), bool), neutral_params(len(index)))


def _resized(height: Index, width: Index, protocol: Protocol) -> tuple[Index, Index]:
    if protocol.resize != "shorter_side":
        side = protocol.side if protocol.resize == "warp" else protocol.size
        return np.full_like(height, side), np.full_like(width, side)
    return (height, width) if protocol.side is None else rescaled_size(height, width, protocol.side)


def _crop_boxes(height: Index, width: Index, samples: Samples, augmentation: Augmentation) -> Index:
    """The crop of each sample by the method `augmentation.crop`: top, left, height, width, int64 [B, 4]."""
    if augmentation.crop in ("random_resized", "random_sized"):
        assert augmentation.area is not None and augmentation.aspect is not None
        # Draws 40 to 49 are of random_sized only. A counter-based generator gives the other 40 the same values either
        # way.
        draw = random_uint64(**samples.key, stream=Stream.CROP, count=5 * NUM_ATTEMPTS)
        crop = {"random_resized": random_resized_boxes, "random_sized": random_sized_boxes}[augmentation.crop]
        return crop(height, width, draw, area=augmentation.area, aspect=augmentation.aspect)
    if augmentation.crop == "random_sized_tf":
        assert augmentation.area is not None and augmentation.aspect is not None
        assert augmentation.min_object_covered is not None
        draw = random_uint64(**samples.key, stream=Stream.CROP, count=4 * NUM_ATTEMPTS)
        area, aspect, min_covered = augmentation.area, augmentation.aspect, augmentation.min_object_covered
        return random_sized_tf_boxes(height, width, draw, area=area, aspect=aspect, min_object_covered=min_covered)
    if augmentation.crop == "random":
        assert augmentation.side is not None and augmentation.region is not None
        draw = random_uint64(**samples.key, stream=Stream.CROP, count=3)
        side, size, region = augmentation.side, augmentation.size, augmentation.region
        return random_boxes(height, width, draw, side=side, size=size, region=region)
    assert augmentation.crop == "none", augmentation.crop
    return np.stack([np.zeros_like(height), np.zeros_like(width), height, width], axis=1)


def random_resized_boxes(
    height: Index, width: Index, draw: npt.NDArray[np.uint64], *, area: list[float], aspect: list[float]
) -> Index:
    """Boxes int64 [B, 4] of GoogLeNet's crop (Szegedy et al. 2015, section 6), by torchvision's RandomResizedCrop.

    The box covers a share of the image uniform over `area`, its aspect ratio (width / height) is log-uniform over
    `aspect`, and its position is uniform. The first of ten attempts that fits is taken. Attempt a uses draws 4a (area),
    4a + 1 (aspect), 4a + 2 (top) and 4a + 3 (left) of `draw`, uint64 [B, 50]. If none fits: the largest central box
    whose aspect ratio is in the range.
    """
    # All ten attempts are computed for every sample, although the first one usually fits: vectorized, that is cheaper
    # than a loop in Python with early exit.
    low, high = np.log(aspect)
    ratio = np.exp(low + (high - low) * as_uniforms(draw[:, 1:40:4]))
    boxes, fits = _attempted_boxes(height, width, draw, area=area, ratio=ratio)
    return np.where(fits[:, None], boxes, _fallback_boxes(height, width, aspect))


def random_sized_boxes(
    height: Index, width: Index, draw: npt.NDArray[np.uint64], *, area: list[float], aspect: list[float]
) -> Index:
    """Like `random_resized_boxes`, but by fb.resnet.torch's RandomSizedCrop (datasets/transforms.lua).

    The aspect ratio is uniform over `aspect`, not log-uniform; then draw 40 + a swaps height and width with probability
    1/2. If no attempt fits: the central square (fb.resnet.torch's Scale and CenterCrop).
    """
    ratio = aspect[0] + (aspect[1] - aspect[0]) * as_uniforms(draw[:, 1:40:4])
    ratio = np.where(as_uniforms(draw[:, 40:50]) < 0.5, 1 / ratio, ratio)
    boxes, fits = _attempted_boxes(height, width, draw, area=area, ratio=ratio)
    side = np.minimum(height, width)
    square = np.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side], axis=1)
    return np.where(fits[:, None], boxes, square)


def _attempted_boxes(
    height: Index, width: Index, draw: npt.NDArray[np.uint64], *, area: list[float], ratio: Float64
) -> tuple[Index, npt.NDArray[np.bool_]]:
    """Box of the first attempt that fits, int64 [B, 4], and whether any fits, bool [B]; ratio: [B, 10]."""
    height, width = height[:, None], width[:, None]
    target_area = height * width * (area[0] + (area[1] - area[0]) * as_uniforms(draw[:, 0:40:4]))
    box_height = np.rint(np.sqrt(target_area / ratio)).astype(np.int64)
    box_width = np.rint(np.sqrt(target_area * ratio)).astype(np.int64)
    fits = (box_height > 0) & (box_height <= height) & (box_width > 0) & (box_width <= width)
    first = fits.argmax(axis=1)[:, None]  # of bools: the first True, or 0 if there is none
    # Boxes that do not fit would make the range negative; they are discarded below, so any valid range will do.
    top = integers_below(draw[:, 2:40:4], np.where(fits, height - box_height + 1, 1))
    left = integers_below(draw[:, 3:40:4], np.where(fits, width - box_width + 1, 1))
    attempts = np.stack([top, left, box_height, box_width], axis=2)
    return np.take_along_axis(attempts, first[:, :, None], axis=1)[:, 0], np.any(fits, axis=1)


def random_boxes(
    height: Index, width: Index, draw: npt.NDArray[np.uint64], *, side: list[int], size: int, region: str
) -> Index:
    """Boxes int64 [B, 4] of a size x size window in the image rescaled to a random shorter side.

    The side is uniform over the integers `side` [low, high] (draw 0): a range is VGG's scale jittering (Simonyan and
    Zisserman 2015), a single value AlexNet's crop (Krizhevsky et al. 2012, section 4.1). The window's top
    and left (draws 1, 2) are uniform over the whole rescaled image or over its central square (`region`).
    """
    # The image is never rescaled as a whole: the window's edges are mapped back to stored pixels, so one resize of the
    # crop does both. Edges are rounded to whole pixels; a store that has this side already is cropped without a resize.
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
        # At least a pixel: in a store that is smaller than the rescaled image, a narrow window may round to nothing.
        lengths.append(np.maximum(last - starts[-1], 1))
    return np.stack(starts + lengths, axis=1)


def _fallback_boxes(height: Index, width: Index, aspect: list[float]) -> Index:
    """The largest central box whose aspect ratio is within `aspect`, as in torchvision."""
    low, high = aspect
    is_tall, is_wide = width / height < low, width / height > high
    box_height = np.where(is_tall, np.rint(width / low).astype(np.int64), height)
    box_width = np.where(is_wide, np.rint(height * high).astype(np.int64), width)
    box_height, box_width = np.maximum(box_height, 1), np.maximum(box_width, 1)
    return np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=1)


def _rounded_ratio(numerator: Index, denominator: Index) -> Index:
    """Round to the nearest integer, halves up, in integers: no float error moves a box by a pixel."""
    return (2 * numerator + denominator) // (2 * denominator)

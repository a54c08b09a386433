"""Geometry of resizes and crops: sizes and boxes in whole pixels, pure functions of image sizes.

Heights and widths are ints or integer arrays, and so are the results. A box is (top, left, height, width) in pixels,
half-open: row `top + height` is the first one below it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Size = Any  # an int or an integer array; the result has the type of the argument

# Limit for an image, the same in every reader of files: 1 GB in Pillow's memory, 805 MB in a raw store. Without one a
# file of a few kilobytes could claim a size that exhausts the memory.
MAX_PIXELS = 1 << 28


def rescaled_size(height: Size, width: Size, side: Size) -> tuple[Size, Size]:
    """(height, width) after a resize of the shorter side to `side`: the longer is floor(side * long / short).

    This is the rounding of torchvision's Resize. The longer side is never shorter than `side`.
    """
    short, long = np.minimum(height, width), np.maximum(height, width)
    longer = side * long // short
    is_wide = np.less_equal(height, width)
    return _like(height, np.where(is_wide, side, longer)), _like(height, np.where(is_wide, longer, side))


def stored_size(height: Size, width: Size, *, short_side: int | None, max_side: int | None) -> tuple[Size, Size]:
    """(height, width) of an image in a store: the shorter side is reduced to `short_side`, then the longer one to
    `max_side` (the shorter becomes floor(max_side * short / long), at least 1). Never enlarges; None: no limit.
    """
    if short_side is not None:
        reduced = rescaled_size(height, width, short_side)
        is_large = np.greater(np.minimum(height, width), short_side)
        height, width = (
            _like(old, np.where(is_large, new, old)) for old, new in zip((height, width), reduced, strict=True)
        )
    if max_side is not None:
        longest = np.maximum(height, width)
        is_large = np.greater(longest, max_side)
        height, width = (
            _like(old, np.where(is_large, np.maximum(1, max_side * old // longest), old)) for old in (height, width)
        )
    return height, width


def center_box(height: Size, width: Size, box_height: Size, box_width: Size) -> tuple[Size, Size, Size, Size]:
    """The central box of the given size, at the position of torchvision's CenterCrop: round((image - box) / 2), with
    halves rounded to even. The box must fit.
    """
    assert np.all(np.less_equal(box_height, height)) and np.all(np.less_equal(box_width, width)), "the box must fit"
    return offset(height, box_height), offset(width, box_width), box_height, box_width


def central_square(height: Size, width: Size) -> tuple[Size, Size, Size, Size]:
    """The largest central square: AlexNet's region after rescaling (Krizhevsky et al. 2012, section 2)."""
    side = _like(height, np.minimum(height, width))
    return center_box(height, width, side, side)


def central_fraction(height: Size, width: Size) -> tuple[Size, Size, Size, Size]:
    """The central 0.875 of both sides, in which Inception and MobileNet are tested, as TensorFlow's
    `central_crop(image, 0.875)` rounds it: a sixteenth of the length, rounded down, is cut off at each edge.
    """
    top, left = height // 16, width // 16
    return top, left, height - 2 * top, width - 2 * left


def offset(outer: Size, inner: Size, position: Any = 0.5) -> Size:
    """Where a box of length `inner` starts within `outer`: position 0 is the start, 0.5 the center, 1 the end.

    Half pixels go to the even number, as Python's round() in torchvision's CenterCrop does.
    """
    return _like(outer, np.rint(np.subtract(outer, inner) * position))


def _like(example: Size, value: Any) -> Size:
    """`value` as an int if `example` is a number, else as an int64 array."""
    return int(value) if np.ndim(example) == 0 and np.ndim(value) == 0 else np.asarray(value).astype(np.int64)
